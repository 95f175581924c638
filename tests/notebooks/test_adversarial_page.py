"""The chapter on adversarial images, from what it measured, by a route that does not use its code."""

from dataclasses import replace

import numpy as np
import pytest

from kdlib import stats
from kdlib.book import images, results
from kdlib.measures import Attack, Attacked, Noise, Predictions
from kdlib.store import Store


def test_the_fooled_are_counted_as_the_measurements_say(smoke):
    out, cache = smoke
    found, store = results.read(out / "results" / "adversarial.json"), Store(cache)
    given = found.provenance["parameters"]
    study = images.Images(given, given["device"], given["dtype"])
    pair, suite = study.pairs[0], study.suite
    runs, label = study.arms(pair), suite.test(suite.seen, "cpu")[1].numpy()

    def said(measure):
        return store.read("measure", measure.key).arrays

    def answers(method, attack=None):
        return np.stack([said(Attacked(runs[method, s], attack) if attack else Predictions(runs[method, s], suite, suite.seen))["prediction"]
                         for s in study.seeds(pair)])

    common = dict(rate=given["rate"], items=given["items"] or None)
    attacks = {m: Attack(runs[m, 0], suite, suite.seen, **common) for m in ("T", "T*")}
    changed = {(of, m): answers(m, attacks[of]) != answers(m) for of in attacks for m in ("T", "T*", "Ind", "KL", "KL*")}
    hit = {of: changed[of, of][0] for of in attacks}
    assert all(given["rate"] <= h.mean() < 1 for h in hit.values()), "calibrated on the first 500, here all of them"

    where = dict(pair=pair.name, domain=suite.seen)
    for of, method, reference in ("T", "KL", "Ind"), ("T*", "KL", "Ind"), ("T", "KL", "KL*"), ("T*", "KL*", "KL"):
        row = found.find(method=method, reference=reference, measure="fooled", condition={"images": of}, **where)
        one, two = (changed[of, m][:, hit[of]] for m in (method, reference))
        wanted = stats.effect(one, two, 1.0 if (of, reference) == ("T", "Ind") else None)
        assert row["n_items"] == hit[of].sum() and row["transfer"] == pytest.approx(wanted.transfer)
        assert [row[k] for k in ("effect", "low", "high")] == pytest.approx([wanted.effect, wanted.low, wanted.high])

    row = found.find(method="KL", reference="Ind", measure="fooled, own minus foreign", condition={}, **where)
    lead = {m: changed["T", m][:, hit["T"]].mean(1) - changed["T*", m][:, hit["T*"]].mean(1) for m in ("KL", "Ind")}
    assert row["n_items"] is None and row["effect"] == pytest.approx((lead["KL"] - lead["Ind"]).mean())

    wrong = answers("KL", attacks["T"]) != label
    assert found.values(method="KL", measure="fooled, by label", condition={"images": "T"}, **where) == pytest.approx(wrong[:, hit["T"]].mean(1))
    noisy = answers("KL", Noise(attacks["T"])) != answers("KL")
    assert found.values(method="KL", measure="fooled", condition={"images": "noise"}, **where) == pytest.approx(noisy[:, hit["T"]].mean(1))
    same = changed["T", "KL"] & (answers("KL", attacks["T"]) == answers("T", attacks["T"])[:1])
    assert found.values(method="KL", measure="fooled as T is", condition={"images": "T"}, **where) == pytest.approx(same[:, hit["T"]].mean(1))
    half = Attack(runs["T", 0], suite, suite.seen, **common, scale=0.5)
    assert found.values(method="Ind", measure="changed answers", condition={"images": "T", "eps": 0.5}, **where) == pytest.approx(
        (answers("Ind", half) != answers("Ind")).mean(1))

    shown = tuple(i for i, name in enumerate(suite.names) if images.may_show(suite, name))
    eps = {"T": said(replace(attacks["T"], images=12, classes=shown))["eps"], "T*": said(attacks["T*"])["eps"]}
    sizes = sorted(map(float, given["curve"].split(",")))
    size = min(sizes, key=lambda k: abs(np.log(k * eps["T"] / eps["T*"])))
    beside = found.matching(method="KL", reference="Ind", measure="fooled", condition={"images": "T", "eps": size}, **where)
    assert bool(beside) == (size != 1)
    if beside:
        scaled = replace(attacks["T"], scale=size)
        moved = {m: answers(m, scaled) != answers(m) for m in ("T", "Ind", "KL")}
        fooled = moved["T"][0]
        assert beside[0]["n_items"] == fooled.sum() and beside[0]["effect"] == pytest.approx((moved["KL"] * 1.0 - moved["Ind"])[:, fooled].mean())
        [row] = found.matching(method="KL", reference="Ind", measure="fooled, own minus foreign", condition={"eps": size}, **where)
        lead = {m: c[:, fooled].mean() - changed["T*", m][:, hit["T*"]].mean() for m, c in moved.items()}
        assert row["effect"] == pytest.approx(lead["KL"] - lead["Ind"])
