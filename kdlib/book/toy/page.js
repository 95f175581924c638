
// ---- the model of a page without a kernel: it keeps the state in the page's address -----------------------------------------------

const scenes = JSON.parse(document.getElementById("scenes").textContent), heard = {}, held = { scenes };
const model = {
  get: name => held[name],
  set: (name, value) => { held[name] = value; },
  on: (name, call) => { heard[name] = call; },
  save_changes: () => history.replaceState(null, "", `#${encode(held.state)}${held.embed ? "&embed" : ""}`),
};
function read() {
  held.message = "";
  try {
    Object.assign(held, decode(location.hash.slice(1), scenes));
  } catch (error) {
    held.message = `This link cannot be read: ${error.message}. The opening picture is shown instead.`;
    held.state = check(scenes[0]);
  }
  heard["change:state"]?.();
  heard["change:message"]?.();
}
read();
document.documentElement.toggleAttribute("data-embed", Boolean(held.embed));
render({ model, el: document.getElementById("toy") });
addEventListener("hashchange", read);
