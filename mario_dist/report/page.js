"use strict";
// Unpacks Plotly, which the page carries compressed, and draws the charts in it. Nothing is fetched.
(() => {
  const element = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const figures = JSON.parse(element("figures").textContent);
  const wallUnit = figures.wall_unit;
  const divs = [...document.querySelectorAll(".chart")];
  let clock = "steps";

  function complain(text) {
    element("problem").textContent = text;
    element("problem").hidden = false;
  }

  function bytesOf(base64) {
    const binary = atob(base64);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  async function unpack(base64) {
    const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  function typed(packed) {
    const { buffer } = bytesOf(packed.bdata);
    return packed.dtype === "f4" ? new Float32Array(buffer) : new Float64Array(buffer);
  }

  const wallOf = (packed) => Array.from(typed(packed), (seconds) => seconds / wallUnit.seconds);

  function axis(own, more) {
    const line = colour("--line");
    return { automargin: true, gridcolor: line, zerolinecolor: line, ...own, ...more };
  }

  // A figure as it is drawn now: light or dark, over agent steps or wall-clock.
  function drawn(figure) {
    const overWall = figure.wall && clock === "wall";
    const data = overWall ? figure.data.map((trace, i) => ({ ...trace, x: wallOf(figure.wall[i]) })) : figure.data;
    const xaxis = overWall ? { title: { text: `wall-clock (${wallUnit.name})` } } : {};
    const layout = {
      ...figure.layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), size: 11 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--ink") },
      xaxis: axis(figure.layout.xaxis, xaxis),
      yaxis: axis(figure.layout.yaxis, {}),
      // A finger on a chart scrolls the page.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    };
    return { data, layout };
  }

  const config = {
    responsive: true,
    displaylogo: false,
    // Without a mouse the buttons would cover the chart for good.
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  };
  const pause = () => new Promise((resolve) => setTimeout(resolve, 0));

  // Drawings take turns, and the newest leaves the rest of an older one undone.
  let turn = 0;
  async function drawAll() {
    const mine = ++turn;
    for (const div of divs) {
      const { data, layout } = drawn(figures.charts[div.id]);
      const bar = div.closest(".small") ? { displayModeBar: false } : {};
      await Plotly.react(div, data, layout, { ...config, ...bar });
      await pause();
      if (mine !== turn) return;
    }
    document.documentElement.dataset.drawn = `${divs.length} ${clock}`;
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") {
      complain("This browser is too old for the charts: Chrome 80, Firefox 113 or Safari 16.4 draws them.");
      return;
    }
    const script = document.createElement("script");
    script.textContent = await unpack(element("plotly").textContent);
    document.head.append(script);
    await drawAll();
    for (const input of document.querySelectorAll("input[name=clock]")) {
      input.addEventListener("change", () => {
        clock = input.value;
        drawAll();
      });
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  }

  start().catch((error) => complain(`The charts could not be drawn: ${error}`));
})();
