#!/usr/bin/env bash
# transformers 5.24.0: Falcon hands attention_dropout to every layer and drops nothing with it; MPT can have no dropout at all.
#
# A network is made with one rate of 0.5 and all others 0, is in training mode, and reads the same row 32 times. The rows'
# states are equal, under eager attention and under SDPA, and nothing is said. (Falcon's alibi variant does drop.) MPT ignores
# emb_pdrop and resid_pdrop, and its attn_pdrop must be an integer: a rate of 0.5 is an error. Phi3 ignores embd_pdrop. Training
# goes on without the regularisation that the configuration names, and what needs two dropout views of a batch gets the same
# one twice. Settings of Llama, Qwen, Mistral, Gemma, GPT-NeoX and BERT do what they say.
#
# Seen, largest difference between states of equal rows:
#   falcon: attention_dropout 0.000, hidden_dropout 4.251;  mpt: 0.000;  phi3: embd_pdrop 0.000, attention_dropout 2.348
# Fails if that changes. PYTHON names the interpreter (3.11 or newer), VERSION another release.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==${VERSION:-5.24.0}" "torch==2.13.0" numpy

cat > "$work/seen.py" <<'PYTHON'
import warnings

import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModel

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FALCON = {**SMALL, "hidden_dropout": 0.0, "attention_dropout": 0.0}
PHI3 = {**SMALL, "intermediate_size": 64, "pad_token_id": 0, "resid_pdrop": 0.0}
MPT = {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4}
ROWS = torch.arange(3, 19)[None].repeat(32, 1)


def spread(model_type, attention, **fields):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    model = AutoModel.from_config(config, attn_implementation=attention).train()
    with torch.no_grad():
        states = model(input_ids=ROWS, use_cache=False).last_hidden_state
    return float((states - states[0]).abs().max())


def seen(dropped, model_type, attention, fields, **rate):
    difference = spread(model_type, attention, **{**fields, **rate})
    print(f"{model_type:7s} {attention:6s} {rate}: {difference:.3f}")
    assert (difference > 0.01) == dropped


for attention in ("eager", "sdpa"):
    seen(False, "falcon", attention, FALCON, attention_dropout=0.5)
    seen(True, "falcon", attention, FALCON, hidden_dropout=0.5)
    seen(False, "phi3", attention, PHI3, embd_pdrop=0.5)
    seen(True, "phi3", attention, PHI3, attention_dropout=0.5)
seen(True, "falcon", "eager", FALCON, attention_dropout=0.5, alibi=True)
for name in ("emb_pdrop", "resid_pdrop"):
    seen(False, "mpt", "eager", MPT, **{name: 0.5})
try:
    AutoConfig.for_model("mpt", **MPT, attn_config={"attn_pdrop": 0.5})
except StrictDataclassFieldValidationError as error:
    print("mpt    ", error)
else:
    raise SystemExit("a rate of 0.5 is allowed now")
PYTHON
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/seen.py"
