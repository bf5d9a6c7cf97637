"""What training and inference both need; imports neither `models` nor `data`."""
