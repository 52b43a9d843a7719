"""Errors planted in what attacks, probes, hardens and is given away; the form is that of `planted_errors.py`."""

from __future__ import annotations

_SUITE, _UDA, _P4D = "red_team/test_suite.py", "red_team/test_unlearn_diff_atk.py", "red_team/test_p4d.py"
_CCE, _BELL, _TINA = "red_team/test_concept_inversion.py", "red_team/test_ring_a_bell.py", "red_team/test_textless.py"
_DOORS, _RELEARN, _ROBUST = "red_team/test_side_doors.py", "red_team/test_relearning.py", "diffusion/test_robust.py"
_GENETIC, _RANK = "red_team/test_genetic.py", "adapters/test_low_rank.py"

TABLE: dict[str, dict[str, list[tuple[str, str]]]] = {
    "red_team/tally.py": {_SUITE: [('("ASR", self.pre + self.post)', '("ASR", self.post)')]},
    "red_team/verdict.py": {
        _SUITE: [
            ("if wilson_interval(hits, prompts)[0] > allowed:", "if wilson_interval(hits, prompts)[1] > allowed:"),
            ("if floor is None or found < EARLY * floor:", "if floor is None or found > EARLY * floor:"),
            ("if one.tally.post or not one.tally.pre:", "if one.tally.prompts:"),
            ("(0 if unaided else one.tally.post)", "one.tally.post"),
        ]
    },
    "red_team/suite.py": {
        _SUITE: [
            ("zip(seen.cases, pre, strict=True) if not hit]", "zip(seen.cases, pre, strict=True)]"),
            ("one.hit and not before for", "one.hit for"),
            ("drawn=seen.drawn_as, unaided=pre", "drawn=seen.drawn_as"),
            ("for case in seen.cases], drawn=seen.drawn_as,", "for case in seen.cases],"),
        ]
    },
    "red_team/judge.py": {_SUITE: [("bool(found & self.labels)", "self.labels <= found")]},
    "red_team/practice.py": {
        _SUITE: [("else self.mask.sha256", "else self.mask.number_selected")],
        _RELEARN: [("seed=stream_seed(seed, _LORA)", "seed=seed")],
    },
    "red_team/add_ons.py": {
        _SUITE: [
            ("{sha256_of(lora_file(self.place))}", "{self.place}"),
            ("(file.name, sha256_of(file))", "file.name"),
        ],
        _DOORS: [
            ("limit * slope.max()", "limit"),
            ("controlnet_conditioning_scale=self.scale", "controlnet_conditioning_scale=1.0"),
        ],
    },
    "red_team/sampling_loop.py": {
        "red_team/test_sampling_loop.py": [
            ("float(self.timesteps[place]) <= most", "float(self.timesteps[place]) < most"),
            ("without + weight * (with_words", "with_words + weight * (with_words"),
        ]
    },
    "red_team/token_space.py": {
        "red_team/test_token_space.py": [
            (".mean(dim=0))", ".sum(dim=0))"),
            ("at.append(1 + len(mixed))", "at.append(len(mixed))"),
        ]
    },
    "red_team/known.py": {_SUITE: [("5 if concept.explicit else 3", "3 if concept.explicit else 5")]},
    "red_team/report.py": {_SUITE: [("100 * point.rate:.0f", "point.rate:.0f")]},
    "red_team/probe.py": {
        _RELEARN: [
            ("* (rate - before.rate) / (point.rate - before.rate)", "* (rate - before.rate)"),
            ("(one.rate + other.rate) / 2", "(one.rate + other.rate)"),
        ]
    },
    "red_team/unlearn_diff_atk.py": {
        _UDA: [
            (".sum(dim=-1, keepdim=True) - 1) / positive", ".sum(dim=-1, keepdim=True) + 1) / positive"),
            ("F.hardtanh(gradients[0])", "gradients[0]"),
            ("range(apart // 2, num", "range(apart, num"),
            ("weight_decay=self.weight_decay)", "weight_decay=0.0)"),
            ("noise_like(clean, [random[one] for one", "noise_like(clean, [stream(one, self.name) for one"),
            ("wanted, right=True", "wanted, right=False"),
        ]
    },
    "red_team/p4d.py": {
        _P4D: [
            ("F.normalize(one, dim=-1) @ matrix.T", "one @ matrix.T"),
            ("range(0, length + 1, self.every)", "range(0, length, self.every)"),
            ("base.predict(base.denoiser", "base.predict(family.denoiser"),
        ]
    },
    "red_team/concept_inversion.py": {
        _CCE: [
            ("errors.mean() * together / self.accumulation", "errors.mean() / self.accumulation"),
            ("self.learning_rate * self.batch_size * self.accumulation", "self.learning_rate"),
            ('said.rows(chosen if self.sentences == "prompt" else others)', "said.rows(others)"),
            ("sum(losses[-self.look_every :]) / len(losses[-self.look_every :])", "sum(losses) / len(losses)"),
            ("weight_decay=self.weight_decay)", "weight_decay=0.0)"),
        ]
    },
    "red_team/ring_a_bell.py": {
        _BELL: [("[STATES] + self.strength * vector", "[STATES] - self.strength * vector")],
    },
    "red_team/genetic.py": {
        _GENETIC: [
            ("values.argsort(stable=True)[:", "values.argsort(stable=True, descending=True)[:"),
            ("rows[0], drawn[0] = parents[0], False", "drawn[0] = False"),
        ]
    },
    "red_team/ddim_path.py": {
        _TINA: [
            ("- first * (1 - kept).sqrt()", "+ first * (1 - kept).sqrt()"),
            ("total / len(self.timesteps)", "total"),
            ("signal * noised - noise * answer, signal", "signal * noised + noise * answer, signal"),
        ]
    },
    "red_team/textless.py": {_TINA: [("[*order[1:], order[0]]", "order")]},
    "red_team/added_noise.py": {
        _DOORS: [
            ("abs(1 - next_alpha - sigma**2)", "max(0.0, 1 - next_alpha - sigma**2)"),
            ("led + self._scale * sigma * drawn", "led + sigma * drawn"),
            ("if scheduler.config.clip_sample:", "if False:"),
        ]
    },
    "red_team/side_doors.py": {_DOORS: [("torch.where(kept > 0, course", "torch.where(kept < 1, course")]},
    "red_team/relearning.py": {
        _RELEARN: [
            ("family.schedule.target(clean, noise, times))", "noise)"),
            ("curve.steps_to(ceiling / 2)", "curve.steps_to(ceiling)"),
            ("number * self.batch_size, seed", "number, seed"),
        ]
    },
    "masks/conflict.py": {_ROBUST: [("torch.where(product < 0,", "torch.where(product > 0,")]},
    "diffusion/inner_attack.py": {
        _ROBUST: [
            ("values + rate * gradient", "values - rate * gradient"),
            ("torch.maximum(change, -budget), budget)", "torch.maximum(change, -budget), 2 * budget)"),
        ]
    },
    "diffusion/robust_step.py": {
        f"{_ROBUST} -k 'hand or vanish'": [
            ("scaler.get_scale() if scaler else 1.0", "1.0"),
            ("without_conflict(g_f, g_r)", "without_conflict(g_r, g_f)"),
            ("rows.target * rows.scale", "rows.target"),
        ]
    },
    "diffusion/batches.py": {
        f"{_ROBUST} -k probe": [('("training back", share.step)', '("relearning", share.step)')],
    },
    "diffusion/objectives.py": {
        "diffusion/test_objectives.py": [
            ("self.overshoot * (anchored[:half] - known)", "self.overshoot * (known - anchored[:half])")
        ]
    },
    "adapters/low_rank.py": {
        _RANK: [
            ("vectors[:, -kept:].flip(1)", "vectors[:, :kept].flip(1)"),
            (".clamp(min=0).sqrt().sqrt()", ".clamp(min=0).sqrt()"),
            ("return int(shape[0] + shape[1:].numel())", "return int(shape[0] + shape[1])"),
        ]
    },
}
"""File → test files → pairs of right and wrong."""
