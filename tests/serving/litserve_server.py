"""A LitServe server with our API; the arguments are the checkpoint and the port."""

import sys

import litserve

from lit_transformer.serving.lit_api import TranslationAPI

if __name__ == "__main__":
    server = litserve.LitServer(TranslationAPI(sys.argv[1], batch_timeout=0.05), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
