#!/bin/sh
# From Stable Diffusion 1.5, XL or 3 to four steps by a low-rank adapter. Not run as it stands: no weights were there.
# By --dry-run, without weights: 6.4 GiB, of XL 18.3, of 3 (medium) 10.0, text encoders and autoencoder aside.
#   hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir sd15
#   sh examples/sd_lora.sh sd15 pictures            # pictures, each with a .txt beside it: the critic leads
#   sh examples/sd_lora.sh sd15 prompts.txt my_rewards:aesthetic     # prompts and a reward
set -eu
base=$1 what=$2 reward=${3:-} name=$(basename "$1")
size=512
if [ -d "$base/unet" ] && [ -d "$base/text_encoder_2" ]; then
  size=1024  # what XL was trained on
fi
common="pretrained.path=$base data.image_size=$size sampler.num_steps=4 policy.lora.rank=16 metrics.full_step=off
  training.batch_size=8 model.gradient_checkpointing=true model.precision=bfloat16 rollout.num_workers=0"

if [ -d "$base/transformer" ]; then
  common="$common sampler.start_time=999"  # flow matching starts from pure noise
fi
if [ -n "$reward" ]; then
  # shellcheck disable=SC2086  # settings have no spaces
  set -- $common data.name=pipeline "prompts.path=$what" "reward=$reward" algorithm=nft rollout.group_size=4
else
  # shellcheck disable=SC2086
  set -- $common "data.path=$what" data.captions=txt algorithm=pathwise pathwise.checkpoint_activations=true
fi
sft-rl train images "$@" --dry-run
sft-rl train images "$@" --out "runs/$name-4"
sft-rl export "runs/$name-4" --out "$name-4-steps"
sft-rl export "runs/$name-4" --out "$name-4-lora" --adapter
