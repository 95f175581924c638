"""The toy example as a Jupyter widget. Needs anywidget and ipywidgets."""

import anywidget
import ipywidgets
import traitlets

from kdlib.book.toy import HERE, LIMITS, Demo, check, inline, scenes


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
        """Sliders and toggles for the state's numbers, in sync with it."""
        tau = ipywidgets.FloatLogSlider(min=-1, max=1.3, step=0.05, readout_format=".2f")
        plain = {name: ipywidgets.FloatSlider(min=LIMITS[name][0], max=LIMITS[name][1], step=0.05) for name in ("gamma", "alpha", "noise")}
        steps = ipywidgets.IntSlider(min=0, max=1000)
        scene = ipywidgets.ToggleButtons(options=[(s["name"], s["scene"]) for s in self.scenes])
        texts = {"scene": "scene", "gamma": "hard labels γ", "alpha": "soft targets α", "tau": "temperature τ", "noise": "noise", "steps": "steps"}
        boxes = {"scene": scene, **plain, "tau": tau, "steps": steps}
        for name, box in boxes.items():
            box.description, box.style.description_width = texts[name], "8em"
            box.value = self.state[name]
            box.observe(lambda change, name=name: self._control(name, change["new"]), "value")

        def follow(change):
            for name, box in boxes.items():
                if name != "tau" or abs(box.value - change["new"]["tau"]) > 0.005:  # the slider's steps are not hundredths
                    box.value = change["new"][name]

        self.observe(follow, "state")
        return ipywidgets.VBox([boxes[name] for name in texts])

    def _control(self, name: str, value) -> None:
        if value != self.state[name]:
            self.set(**{name: min(value, LIMITS[name][1]) if name in LIMITS else value})
