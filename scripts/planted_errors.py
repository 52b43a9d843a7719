"""The errors that `plant_errors.py` plants: a wrong sign, factor, bound or argument in an equation of the package."""

from __future__ import annotations

from dataclasses import dataclass

import planted_in_measures
import planted_in_red_team


@dataclass(frozen=True)
class PlantedError:
    """One error.

    Args:
        file: Below ``salun_diffusers``.
        right: The text as it is, which must be there exactly once.
        wrong: What stands in its place.
        tests: What must fail then: words for pytest, below ``tests``.
    """

    file: str
    right: str
    wrong: str
    tests: str


_MASK, _SALIENCY, _SOFT = "masks/test_mask.py", "masks/test_saliency.py", "masks/test_soft_threshold.py"
_SELECTED, _OBJECTIVES = "masks/test_selected_weights.py", "diffusion/test_objectives.py"
_TRAINER, _METHODS = "diffusion/test_trainer.py", "classification/test_methods.py"
_MEASURES = "classification/test_measures.py"
_STACK = "masks/test_patch_stack.py"
_RETAIN_AWARE = "diffusion/test_retain_aware.py"

# File → test files → pairs of right and wrong.
_TABLE: dict[str, dict[str, list[tuple[str, str]]]] = {
    "masks/threshold.py": {
        _MASK: [
            ("marked = chunk > bits", "marked = chunk >= bits"),
            ("upper << 16 | lower", "upper << 15 | lower"),
            ("return bucket, count - int(at_least[steps] - histogram[bucket])", "return bucket, count"),
        ]
    },
    "masks/mask.py": {
        _MASK: [
            ("selected = int(ratio * sum(sizes))", "selected = int((1 - ratio) * sum(sizes))"),
            ("bits & other.packed[name]", "bits | other.packed[name]"),
            ("return (self & other).number_selected / either", "return (self | other).number_selected / either"),
            ("if predicate(name)}", "if not predicate(name)}"),
        ],
        "masks/test_counts.py": [("int(ratio * tensor.numel())))", "int((1 - ratio) * tensor.numel())))")],
        _METHODS: [("[row.selected for row in", "[row.size - row.selected for row in")],
    },
    "masks/packed_bits.py": {_MASK: [("(1 << size % 8) - 1", "(1 << size % 8)")]},
    "masks/saliency.py": {
        _SALIENCY: [
            ('gradient.abs() if accumulate == "absolute"', 'gradient.abs() if accumulate == "squared"'),
            ('if accumulate != "signed":', 'if accumulate == "signed":'),
            ("parameters.values(), max_grad_norm)", "parameters.values(), 2 * max_grad_norm)"),
            ("reduce(total).abs()", "reduce(total.abs())"),
            ('(losses is not parts or accumulate == "signed")', "True"),
            ("scores.div_(retain[name] + mean)", "scores.div_(retain[name])"),
            ("/ retain.number_of_weights", ""),
        ]
    },
    "masks/selected_weights.py": {
        _SELECTED: [
            ("else leaf.grad.add_(gradient)", "else gradient"),
            ("self._parameters, self.names)", "self._parameters, self._parameters)"),
            ("dense, parameter.grad = parameter.grad, None", "dense = parameter.grad"),
        ]
    },
    "masks/positions.py": {
        _SELECTED: [
            ("flat.index_copy_(0, self._indices.long(), values)", "flat.index_add_(0, self._indices.long(), values)"),
            ("flat.index_copy_(0, self._indices(len(flat)),", "flat.index_add_(0, self._indices(len(flat)),"),
            ("if selected == size:", "if selected >= 1:"),
        ]
    },
    "masks/soft_threshold.py": {
        _SOFT: [
            ("total - taken_back + 1", "total - taken_back"),
            ("now - threshold * change.sign()", "now + threshold * change.sign()"),
            ("start * (1 - step / steps)", "start * step / steps"),
            ("int(share * (total + others)) - others", "int(share * total)"),
            ("epochs * (forget + retain)))", "epochs * forget))"),
            ("divmod(step - 1, forget)", "divmod(step, forget)"),
        ]
    },
    "masks/soft_updates.py": {
        "masks/test_soft_updates.py": [
            ("torch.lerp(start, leaf, share.to(leaf))", "torch.lerp(leaf, start, share.to(leaf))"),
            ("falling_share(start, done, 1)", "falling_share(start, 1 - done, 1)"),
            ("[leaf.detach().clone() for leaf in weights]", "[leaf.detach() for leaf in weights]"),
            ('stream(seed, "soft mask", step)', 'stream(seed, "soft mask")'),
            (
                "self._reference, self._share(*self._now), others=self._others",
                "self._reference, self._share(*self._now)",
            ),
        ]
    },
    "masks/inclusion.py": {
        "masks/test_inclusion.py": [
            ("(low + high) / 2) / temperature)", "(low + high) / 2) * temperature)"),
            ("(middle, high) if", "(low, middle) if"),
            ("1 - (1 - mine.double()) * (1 - theirs)", "mine.double() + theirs"),
            ("generator=generator) < probabilities", "generator=generator) > probabilities"),
            ("pack(tensor > 0)", "pack(tensor >= 0)"),
            ("[score.reshape(-1) > 0]", "[score.reshape(-1) >= 0]"),
        ]
    },
    "masks/mask_overlap.py": {
        "masks/test_mask_overlap.py": [
            ("self.first + self.second - self.both", "self.first + self.second"),
            ("self.first + self.second - self.by_chance", "self.first + self.second"),
            ("selected * other / size", "selected + other / size"),
            ("if len(named) > 1:", "if len(named) > 2:"),
        ]
    },
    "masks/mask_map.py": {
        "masks/test_mask_map.py": [
            ("Count(weights + size, before + selected)", "Count(size, before + selected)"),
            ('None if name.startswith("mid_block.") else', ""),
            ("len(shape) > 2", "len(shape) > 1"),
        ]
    },
    "masks/patch.py": {_STACK: [("torch.lerp(*ends, strength)", "torch.lerp(*ends[::-1], strength)")]},
    "masks/patch_stack.py": {
        _STACK: [
            ('if order == "first" else (second, first)', 'if order == "last" else (second, first)'),
            ("return first ^ second", "return second"),
            ("second.erased_sha256 if continued else UNKNOWN", "second.erased_sha256"),
        ]
    },
    "masks/receipt.py": {_MEASURES: [("(moved & ~allowed)", "(moved & allowed)")]},
    "diffusion/objectives.py": {
        _OBJECTIVES: [
            ("ObjectiveLoss(forget + self.retain_weight * retain,", "ObjectiveLoss(forget + retain,"),
            ("(1 + guidance) * conditional - guidance", "(1 + guidance) * conditional + guidance"),
            ("(1 + guidance) * conditional", "guidance * conditional"),
            ("torch.cat([forget, batch.truth[half:]])", "torch.cat([forget, batch.truth[:half]])"),
            (
                "anchored = family.predict(denoiser, batch.noised, batch.timesteps, batch.anchor_conditions)",
                "anchored = family.predict(denoiser, batch.noised, batch.timesteps, batch.conditions)",
            ),
            ("anchors = {name: tensor[:half] for", "anchors = {name: tensor[half:] for"),
            ("concept = {name: tensor[:half] for", "concept = {name: tensor[half:] for"),
        ],
        _RETAIN_AWARE: [
            ("(concept - anchor).float().square()", "(concept + anchor).float().square()"),
            ("(apart * errors).mean()", "errors.mean()"),
        ],
    },
    "diffusion/saliency_pass.py": {
        _RETAIN_AWARE: [
            ('"squared" if squared else "signed"', '"signed" if squared else "squared"'),
            (
                '"saliency of retained", data.retain, data.retain_conditions',
                '"saliency", data.forget, data.forget_conditions',
            ),
            (
                "anchors = data.anchor_conditions if weighted else {}",
                "anchors = data.forget_conditions if weighted else {}",
            ),
            ("    family.denoiser.eval()", "    family.denoiser.train()"),
        ],
        "diffusion/test_memory_account.py -k 'estimate and within_15'": [
            ("at_once if squared and settings.saliency_micro_batch_size >= size else losses", "losses"),
        ],
    },
    "diffusion/stage_marks.py": {
        _RETAIN_AWARE: [
            ('{"against": sets["retain"]}', '{"against": sets["forget"]}'),
        ],
        "diffusion/test_stages.py -k Marks": [
            ('variant = {"variant": sources.variant} if sources.variant else {}', "variant: dict[str, str] = {}"),
            ("sorted(concept.target_labels), looks)", "sorted(concept.target_labels))"),
        ],
        "diffusion/test_stages.py -k saliency_weighting": [
            ('{"weighting": settings.saliency_weighting} if settings.saliency_weighting != "none" else {}', "{}"),
        ],
    },
    "diffusion/baselines.py": {
        "diffusion/test_baselines.py -k 'ascent or fine_tune or l1 or esd or choice'": [
            ("self.retain_weight * retain - forget", "self.retain_weight * retain + forget"),
            ("unconditional - self.negative_guidance", "unconditional + self.negative_guidance"),
            ("self.l1_weight * (1 - progress)", "self.l1_weight * progress"),
            ("torch.cat([away, conditional[rows:]])", "torch.cat([away, conditional[:rows]])"),
            ("tensor.abs().sum() for tensor", "tensor.sum() for tensor"),
        ]
    },
    "diffusion/soft_masks.py": {
        "diffusion/test_soft_masks.py": [
            ("weights - selected.number_selected +", "weights +"),
            ('"mask draw", len(self._inclusions)', '"mask draw", 1'),
            ("reduce(or_, self._inclusions).save", "self._inclusions[0].save"),
            ("not self._inclusions or not self.settings.scales_updates", "not self._inclusions"),
            ("len(data.forget) + len(data.anchor)", "len(data.forget)"),
        ]
    },
    "diffusion/batches.py": {
        _TRAINER: [
            ("divmod(position + len(picked), count)", "divmod(position, count)"),
            ("[blank.to(tensor.device)]", "[~blank.to(tensor.device)]"),
            ("len(data.retain), size, share.step * size", "len(data.retain), size, share.step"),
            ("truth=family.schedule.target(latents, noise, timesteps)[used]", "truth=noise[used]"),
            ("truth = family.schedule.target(latents, noise, timesteps)", "truth = noise"),
        ]
    },
    "diffusion/layer_masks.py": {
        "diffusion/test_adapter_lora.py -k shares": [
            ("scores[layer] + sums[layer] / whole", "scores[layer] + sums[layer]"),
        ]
    },
    "diffusion/sampler.py": {
        "diffusion/test_stages.py -k Marks": [("model_of(run.base, request.config.variant)", "run.base")]
    },
    "reports/intervals.py": {
        "reports/test_measurement.py": [
            ("math.hypot(before - low, later_high - after)", "math.hypot(high - before, after - later_low)"),
            ("z * z / (4 * n * n)", "z * z / (4 * n)"),
        ]
    },
    "reports/strength.py": {
        "reports/test_strength.py": [
            ("min(met, key=_strength)", "max(met, key=_strength)"),
            ("if need.met(point, base)]", "if need.reached(point)]"),
        ]
    },
    "adapters/ranks.py": {
        "adapters/test_low_rank.py": [
            ("max(1, int(scale * ratio))", "max(1, round(scale * ratio))"),
            ("score / cost(shapes[layer]) for", "score for"),
        ]
    },
    "adapters/lora_weights.py": {
        "diffusion/test_adapter_lora.py -k TestWeights": [
            ("down[0].numel() ** -0.5", "down[0].numel() ** -1"),
            ("up.detach() * scale", "up.detach() / scale"),
        ]
    },
    "reports/verdict.py": {
        "reports/test_verdict.py": [
            ("ceiling = max(CEILING, limit + CEILING - HARMLESS_DROP)", "ceiling = CEILING"),
            ("/ goal) ** 2)", "/ goal))"),
        ]
    },
    "demo/training.py": {"demo/test_training.py": [("torch.manual_seed(of_step)", "pass")]},
    "programs/generate.py": {
        "evaluation/test_generation.py -k another": [
            ('**({"variant": config.variant} if config.variant else {}),', ""),
        ]
    },
    "diffusion/families/noise_schedule.py": {
        "diffusion/test_families.py": [
            (".pow(-power)", ".pow(power)"),
            ("else ratio + 1)", "else ratio)"),
            (
                "alpha.sqrt() * noise - (1 - alpha).sqrt() * latents",
                "alpha.sqrt() * noise + (1 - alpha).sqrt() * latents",
            ),
            ("alpha.sqrt() * latents + (1 - alpha).sqrt() * noise", "alpha * latents + (1 - alpha) * noise"),
        ]
    },
    "diffusion/families/stable_diffusion_xl.py": {
        "diffusion/test_stable_diffusion_xl.py -k 'Conditions or fp32'": [
            ("one.hidden_states[-2]", "one.hidden_states[-1]"),
            ("kept * found[1].text_embeds", "found[1].text_embeds"),
            ("[[side, side, 0, 0, side, side]]", "[[0, 0, side, side, side, side]]"),
            ("(self.pipe.vae).to(torch.float32)", "(self.pipe.vae).to(torch.float16)"),
        ]
    },
    "diffusion/trainer.py": {
        _TRAINER: [
            ("target * scale)", "target)"),
            ("settings, progress) / accumulation", "settings, progress)"),
            ("take(progress=step / steps)", "take(progress=(step + 1) / steps)"),
            ("    family.denoiser.eval()", "    family.denoiser.train()"),
        ],
        "diffusion/test_global_batch.py -k scaled": [
            ("settings = with_scaled_rate(settings, accelerator.num_processes)", "pass")
        ],
    },
    "diffusion/ddpm_training.py": {
        "diffusion/test_ddpm_training.py": [
            ("alpha.sqrt() * clean + (1 - alpha).sqrt() * noise", "alpha * clean + (1 - alpha) * noise"),
            ("labels.masked_fill(dropped, null)", "labels.masked_fill(~dropped, null)"),
            ("kept[images.labels != images", "kept[images.labels == images"),
        ]
    },
    "studio/line.py": {
        "studio/test_line.py": [
            ("torch.lerp(old.float(), new.float(), strength)", "torch.lerp(new.float(), old.float(), strength)"),
            ("torch.where(same, old.float(),", "torch.where(same, new.float(),"),
        ]
    },
    "studio/easel.py": {"studio/test_easel.py": [("self._at = None", "pass")]},
}

PLANTED = tuple(
    PlantedError(file, right, wrong, tests)
    for table in (_TABLE, planted_in_measures.TABLE, planted_in_red_team.TABLE)
    for file, by_tests in table.items()
    for tests, pairs in by_tests.items()
    for right, wrong in pairs
)
