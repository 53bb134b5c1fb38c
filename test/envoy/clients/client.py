"""Sends a request over HTTP/2 with prior knowledge, and prints as JSON what httpx got of the
response, and whether it takes that for whole."""

import json
import sys

import httpx

url, content = sys.argv[1:]
body, whole = b"", False
with httpx.Client(http1=False, http2=True, timeout=60) as client:
    try:
        headers = {"content-type": "application/json"}
        with client.stream("POST", url, content=content, headers=headers) as response:
            for piece in response.iter_raw():
                body += piece
        whole = True
    except httpx.HTTPError:
        pass
print(json.dumps({"body": body.decode(), "whole": whole}))
