from bpe_tokenizer import UserError, read_text, write_atomically, remove_half_written
from bpe_tokenizer import check_place as check_writable, print_anything as use_utf8
