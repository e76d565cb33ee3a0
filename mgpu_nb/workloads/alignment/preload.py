"""What the process imports from which workers are forked: transformers takes four seconds, which each would take."""

import transformers.modeling_utils
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto  # noqa: F401

from . import worker  # noqa: F401
