"""The toy example as a Jupyter widget. Needs anywidget and ipywidgets."""

from functools import partial

import anywidget
import ipywidgets
import traitlets

from kdlib.book.toy import HERE, LIMITS, Demo, check, inline, scenes

TAUS = 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 14, 20  # the stops of the temperature's slider, as in toy.js


class Live(Demo, anywidget.AnyWidget):
    """The front-end with its state in sync: drag a point and `x` has moved; `place` points and the picture redraws."""

    _esm = HERE / "toy.js"
    _css = HERE / "toy.css"
    state = traitlets.Dict().tag(sync=True)
    scenes = traitlets.List().tag(sync=True)

    def __init__(self):
        known = scenes()
        super().__init__(state=check(known[0]), scenes=known)

    @traitlets.validate("state")
    def _checked(self, proposal):
        try:
            return check(proposal["value"])
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None

    def _repr_mimebundle_(self, **options):
        """The widget; for pages made of the notebook, which have no kernel, the example as such a page shows it."""
        bundle = super()._repr_mimebundle_(**options)
        data, *rest = bundle if isinstance(bundle, tuple) else (bundle,)
        return ({**data, "text/html": inline()}, *rest) if data else None

    def controls(self) -> ipywidgets.VBox:
        """Toggles and sliders for the scene and the numbers, in sync with the state."""
        texts = {"scene": "scene", "gamma": "hard labels γ", "alpha": "soft targets α", "tau": "temperature τ", "noise": "noise", "steps": "steps"}
        boxes = {name: ipywidgets.FloatSlider(min=LIMITS[name][0], max=LIMITS[name][1], step=0.01) for name in ("gamma", "alpha", "noise")}
        boxes["scene"] = ipywidgets.ToggleButtons(options=[(s["name"], s["scene"]) for s in self.scenes])
        boxes["tau"] = ipywidgets.SelectionSlider(options=[(f"{t:g}", t) for t in TAUS])
        boxes["steps"] = ipywidgets.IntSlider(max=LIMITS["steps"][1])

        def shown(name):  # by its control: of temperatures there are a few
            value = self.state[name]
            return min(TAUS, key=lambda t: abs(t - value)) if name == "tau" else value

        def turn(change, name):
            if change["new"] != shown(name):
                self.set(**{name: change["new"]})

        def follow(_=None):
            for name, box in boxes.items():
                box.value = shown(name)

        follow()
        for name, box in boxes.items():
            box.description, box.style.description_width = texts[name], "8em"
            box.observe(partial(turn, name=name), "value")
        self.observe(follow, "state")
        return ipywidgets.VBox([boxes[name] for name in texts])
