"""From files on disk to padded batches of waveforms; knows nothing of models."""
