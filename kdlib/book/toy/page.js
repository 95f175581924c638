
// ---- the model of a page without a kernel: it keeps the state in the page's address -----------------------------------------------

const host = document.getElementById("kdtoy"), scenes = JSON.parse(document.getElementById("kdtoy-scenes").textContent);
const heard = {}, held = { scenes, state: check(scenes[0]), message: "" };
const model = {
  get: name => held[name],
  set: (name, value) => { held[name] = value; },
  on: (name, call) => { heard[name] = call; },
  save_changes: () => history.replaceState(null, "", `#${encode(held.state)}${held.embed ? "&embed" : ""}`),
};
function read() {
  const text = location.hash.slice(1);
  if ("chapter" in host.dataset && !/^(v|scene)=/.test(text)) return; // a heading's
  held.message = "";
  try {
    Object.assign(held, decode(text, scenes));
  } catch (error) {
    held.message = `This link cannot be read: ${error.message}. The opening picture is shown instead.`;
    held.state = check(scenes[0]);
  }
  heard["change:state"]?.();
  heard["change:message"]?.();
}
read();
document.documentElement.toggleAttribute("data-embed", Boolean(held.embed));
render({ model, el: host });
addEventListener("hashchange", read);
