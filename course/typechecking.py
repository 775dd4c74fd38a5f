"""The type checker that pytest hands to jaxtyping: beartype, to which a whole number is a float too (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
