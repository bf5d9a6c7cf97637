"""Makes corpora in LibriSpeech's layout from public recordings: one file per corpus, registered in `__main__.py`."""
