#!/usr/bin/env bash
# transformers 5.24.0: generate(custom_generate=callable) keeps the streamer and the tokenizer to itself.
#
# A callable in the place of the decoding loop is handed the prepared inputs, processors, criteria and settings. A streamer
# that is given to generate gets the prompt from generate itself, and then nothing: the callable never sees it, so that its text
# is not streamed and `end` is not called. A tokenizer that is given for stop_strings is not handed on to where criteria are
# made, so that stop_strings always raise and ask for the tokenizer that was given. With the library's own loop both work.
#
# Seen:  streamer          own loop: put 4 times, end once;  callable: put once (the prompt), never ended, not among its arguments
#        stop_strings      own loop: a criterion;            callable: ValueError, "... must pass the model's tokenizer ..."
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==${VERSION:-5.24.0}" "torch==2.13.0" numpy

cat > "$work/seen.py" <<'PYTHON'
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

transformers.logging.set_verbosity_error()
words = ["<pad>", *"abcdefghijklmnopqrstuvwxyz"]
core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<pad>")
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), bos_token_id=None, eos_token_id=None, pad_token_id=0, **sizes))
prompt = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}


class Streamer:
    def __init__(self):
        self.put_in, self.ended = 0, 0

    def put(self, value):
        self.put_in += 1

    def end(self):
        self.ended += 1


handed = []


def loop(model, input_ids, logits_processor=None, stopping_criteria=None, generation_config=None, **others):
    handed.append(set(others))
    return input_ids


own, callable_s = Streamer(), Streamer()
model.generate(**prompt, max_new_tokens=3, streamer=own)
model.generate(**prompt, max_new_tokens=3, streamer=callable_s, custom_generate=loop)
print("own loop:", own.put_in, own.ended, " callable:", callable_s.put_in, callable_s.ended, sorted(handed[0]))
assert (own.put_in, own.ended) == (4, 1)
assert (callable_s.put_in, callable_s.ended) == (1, 0)
assert "streamer" not in handed[0]

stops = {"max_new_tokens": 3, "stop_strings": ["zz"], "tokenizer": tokenizer}
model.generate(**prompt, **stops)
try:
    model.generate(**prompt, **stops, custom_generate=loop)
except ValueError as error:
    print("callable:", error)
    assert "tokenizer" in str(error)
else:
    raise SystemExit("stop_strings work with a callable now")
PYTHON
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/seen.py"
