"""A web page that transcribes: recordings, a microphone, and two systems next to each other.

    pip install -r requirements-web.txt
    python -m models.inference.web
"""
