"""The dashboard in the browser, mounted on the REST application. It reads the same store; imports no torch, vllm or ray.

A page or a group of widgets a file. What a model or a person wrote is only ever shown as text, never as HTML.
"""
