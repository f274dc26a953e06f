# rankwright serve on CPU. docs/serving.md says how to run it; this file is not built by the project's tests.
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 rankwright
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY rankwright ./rankwright
# For the CPU build of PyTorch: docker build --build-arg PIP_ARGS="--extra-index-url URL", with the index that the install
# page of PyTorch names for it. A plain pip brings CUDA.
ARG PIP_ARGS=""
RUN pip install --no-cache-dir $PIP_ARGS --constraint constraints.txt ".[serve,train,onnx]"

USER rankwright
ENV HF_HUB_OFFLINE=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://localhost:8000/live', timeout=2)"]
# Mount a model folder at /model and give RANKWRIGHT_API_KEY: without a key this host is refused.
ENTRYPOINT ["rankwright", "serve"]
CMD ["/model", "--host", "0.0.0.0", "--port", "8000"]
