"""Whether transformers and PEFT load what Firn writes, and compute what it computes: an adapter, merged weights, a reward model, and a
model with YaRN-scaled positions. Runs on the CPU; lies here because it needs PyTorch, which CI has not.

  python3 artifacts.py FIRN FIXTURES [FOLDER for the YaRN model and its numbers]
"""
import json
import os
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

failed = 0


def check(name, found, expected, bound):
    global failed
    worst = max((abs(a - b) for a, b in zip(found, expected)), default=float("inf"))
    good = len(found) == len(expected) and worst <= bound
    failed += not good
    print(f"{'ok  ' if good else 'FAIL'} {name}: {len(found)} numbers within {worst:.1e}", flush=True)


def run(firn, work, *args):
    done = subprocess.run([firn, *args], cwd=work, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"firn {' '.join(args)}:\n{done.stderr[-3000:]}")
    return done.stdout


def score(firn, work, ids, *args):
    with open(os.path.join(work, "score.jsonl"), "w") as file:
        file.write(json.dumps({"ids": ids}) + "\n")
    line = json.loads(run(firn, work, "score", *args, "--device", "cpu", "--input", "score.jsonl"))
    # Nothing comes before the first token.
    line["logprobs"] = line["logprobs"][-(len(ids) - 1):]
    return line


def logprobs(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [logits[at - 1, ids[at]].item() for at in range(1, len(ids))]


def main():
    firn, fixture = os.path.realpath(sys.argv[1]), os.path.realpath(os.path.join(sys.argv[2], "llama"))
    torch.manual_seed(0)
    tensors = {name: t.reshape(-1, t.shape[-1]) for name, t in load_file(os.path.join(fixture, "golden.safetensors")).items()}
    ids = tensors["input_ids"][0].tolist()
    with tempfile.TemporaryDirectory() as work:
        with open(os.path.join(work, "rows.jsonl"), "w") as file:
            file.writelines(json.dumps({"input_ids": row.tolist(), "labels": row.tolist()}) + "\n" for row in tensors["sft_ids"])
        common = ["--model", fixture, "--batch-size", "2", "--lr", "2e-3", "--device", "cpu"]
        run(firn, work, "llm", "--train", "--project-name", "out", "--data-path", "rows.jsonl", "--epochs", "2", "--merge-adapter", *common)
        base = AutoModelForCausalLM.from_pretrained(fixture, dtype=torch.float32)
        tuned = PeftModel.from_pretrained(base, os.path.join(work, "out")).eval()
        check("an adapter in PEFT", score(firn, work, ids, "--model", fixture, "--adapter", "out")["logprobs"], logprobs(tuned, ids), 2e-4)
        merged = AutoModelForCausalLM.from_pretrained(os.path.join(work, "out", "merged"), dtype=torch.float32).eval()
        check("merged weights in transformers", score(firn, work, ids, "--model", "out/merged")["logprobs"], logprobs(merged, ids), 2e-4)
        prompt = next(at for at, bit in enumerate(tensors["dpo_mask"][0]) if bit != 0)
        with open(os.path.join(work, "pairs.jsonl"), "w") as file:
            for chosen, rejected in zip(tensors["dpo_chosen"], tensors["dpo_rejected"]):
                pair = {"prompt_ids": chosen[:prompt].tolist(), "chosen_ids": chosen[prompt:].tolist(), "rejected_ids": rejected[prompt:].tolist()}
                file.write(json.dumps(pair) + "\n")
        run(firn, work, "llm", "--train", "--trainer", "reward", "--project-name", "judge", "--data-path", "pairs.jsonl", "--epochs", "3", *common)
        classifier = AutoModelForSequenceClassification.from_pretrained(fixture, num_labels=1, dtype=torch.float32)
        classifier.config.pad_token_id = 0
        judge = PeftModel.from_pretrained(classifier, os.path.join(work, "judge")).eval()
        with torch.no_grad():
            expected = [judge(torch.tensor([row.tolist()])).logits[0, 0].item() for row in tensors["dpo_chosen"]]
        found = [score(firn, work, row.tolist(), "--model", fixture, "--adapter", "judge")["reward"] for row in tensors["dpo_chosen"]]
        check("a reward model in PEFT", found, expected, 2e-4)

        out = os.path.realpath(sys.argv[3]) if len(sys.argv) > 3 else os.path.join(work, "yarn")
        yarn = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0)
        config = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, head_dim=16, max_position_embeddings=128, rope_parameters=yarn, tie_word_embeddings=True)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0 if parameter.dim() == 2 else 1.0)
        model.save_pretrained(out)
        # Beyond the original context, where scaling matters most.
        ids = [(at * 37 + at * at) % 128 for at in range(120)]
        expected = logprobs(model, ids)
        with open(os.path.join(out, "golden.json"), "w") as file:
            json.dump({"ids": ids, "logprobs": expected}, file)
        check("YaRN in transformers", score(firn, work, ids, "--model", out)["logprobs"], expected, 2e-4)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
