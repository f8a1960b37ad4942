# Triton with the packages that the served models import, and the checkout with their runtimes.
# The Python backend uses the image's interpreter: it must have numpy, torch and ONNX Runtime.
FROM nvcr.io/nvidia/tritonserver:25.10-pyt-python-py3

RUN pip install --no-cache-dir onnxruntime==1.23.2 xxhash pydantic
WORKDIR /app
COPY streams streams
COPY features features
COPY models models
