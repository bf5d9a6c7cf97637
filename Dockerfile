# The web page, or transcripts on the command line:
#     docker build -t speech .
#     docker run --rm -p 7860:7860 speech
#     docker run --rm -v "$PWD:/audio:ro" speech python inference.py --audio /audio/a.wav
#
# For CPUs. The wheels of torch hold CUDA's libraries, so that `--gpus all` is enough where the NVIDIA container toolkit
# is installed; code that compiles CUDA itself needs the base nvidia/cuda:13.0.2-devel-ubuntu24.04 and its Python.
# `--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu` leaves CUDA out, for a smaller image.
#
# Not yet built with Docker, for want of a daemon. Its steps were run one by one on Debian 12 with its Python 3.11: both
# pip commands in an empty environment (nothing had to be installed with apt), then, as a user without rights and on the
# files that .dockerignore lets through, the page on 0.0.0.0, which transcribed an upload, and inference.py with beam
# search.
# The page needs a network in pretrained/, or `--checkpoint` with a mounted one.
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://pypi.org/simple
WORKDIR /app
COPY requirements.txt requirements-web.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.11.0 torchaudio==2.11.0 \
    && pip install --no-cache-dir -r requirements-web.txt
COPY . .
RUN useradd --create-home visitor
USER visitor
EXPOSE 7860
CMD ["python", "-m", "models.inference.web", "--host", "0.0.0.0"]
