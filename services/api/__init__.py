"""The REST API. A thin layer over the job store; imports no torch and no vllm."""
