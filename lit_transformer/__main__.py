"""``python -m lit_transformer`` is the console script ``lit-transformer``."""

from lit_transformer.cli import main

if __name__ == "__main__":
    main()
