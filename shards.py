from prepare import Shards, open_tokens, token_dtype
