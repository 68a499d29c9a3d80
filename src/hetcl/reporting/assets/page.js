// Draws each chart again where it comes into view, with a readout; without this script the drawings stand as they are.
const marks = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const shown = (value) => (/^NaN%?$/.test(value) ? "-" : String(value).replace(/[&<>"]/g, (mark) => marks[mark]));
const draw = async (figure) => {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const box = figure.querySelector(".chart");
  const still = box.firstElementChild;
  const made = document.createElement("div");
  spec.width = Math.max(240, box.clientWidth);
  spec.autosize = { type: "fit-x", contains: "padding" };
  try {
    const options = { actions: false, ast: true, renderer: "svg", defaultStyle: false, tooltip: { theme: "custom", sanitize: shown } };
    await vegaEmbed(made, spec, options);
    still.replaceWith(made);
    figure.dataset.drawn = "true";
  } catch (error) {
    console.error(error);
  }
};
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  }
}, { rootMargin: "200px" });
document.querySelectorAll("figure.drawn").forEach((figure) => seen.observe(figure));
