# Triton with what the served models import, and the checkout that holds their runtimes.
# The Python backend's own interpreter is the image's: it must see numpy, torch and ONNX Runtime.
FROM nvcr.io/nvidia/tritonserver:25.10-pyt-python-py3

RUN pip install --no-cache-dir onnxruntime==1.23.2 xxhash pydantic
WORKDIR /app
COPY streams streams
COPY features features
COPY models models
