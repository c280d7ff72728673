/* Draws the figures of a page with uPlot: spgCurves(name, panels) for each <figure data-curves=name>.
   Lines are hidden and shown by the legend, read at the cursor (pointer, or arrow keys), enlarged by
   dragging. Without scripts and on paper the figure's SVG is there instead. `element` is of report.js. */
"use strict";
const spgCurves = (() => {
  const drawn = [];
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const told = (value) => value == null ? "–" : String(Number(value.toPrecision(3)));

  const size = (width) => ({width, height: Math.round(Math.min(Math.max(width * 0.85, 240), 420))});

  function options(panel, width, moved) {
    const axis = (label, log) => ({
      label, labelSize: 22, labelFont: "13px system-ui", font: "12px system-ui",
      stroke: () => ink("--text"),
      grid: {stroke: () => ink("--rule"), width: 1},
      ticks: {stroke: () => ink("--rule"), width: 1},
      values: (_, ticks) => ticks.map((tick) => tick == null ? "" : told(tick)),
    });
    const scale = (name, range) => ({time: false, ...(panel.log === name ? {distr: 3} : {range})});
    return {
      ...size(width),
      legend: {show: false},
      cursor: {focus: {prox: 16}, drag: {x: true, y: false}, dataIdx: nearest},
      focus: {alpha: 0.25},
      scales: {
        x: scale("x", (_, low, high) => [low, high > low ? high : low + 1]),
        y: scale("y", (_, low, high) => [0, panel.yLimit ?? (high > 0 ? high * 1.05 : 1)]),
      },
      axes: [axis(panel.xLabel), {...axis(panel.yLabel), size: 56}],
      series: [{}, ...panel.lines.map((line) => ({
        label: line.name,
        show: line.shown,
        stroke: line.colour ?? (() => ink("--text")),
        width: line.bold ? 2.5 : 1.25,
        dash: line.dashed ? [6, 4] : undefined,
        spanGaps: true,
        points: {show: line.y.filter((y) => y != null).length === 1},
        paths: panel.steps ? uPlot.paths.stepped({align: 1}) : undefined,
      }))],
      hooks: {setCursor: [moved], draw: [(plot) => guide(plot, panel.guide)]},
    };
  }

  /* Lines of several x have no value at each: the cursor reads the nearest on the left that has. */
  function nearest(plot, series, index) {
    const values = plot.data[series];
    while (index > 0 && values[index] == null) index -= 1;
    return index;
  }

  function guide(plot, ends) {
    if (!ends) return;
    const {ctx} = plot;
    const [left, low, right, high] = ends;
    ctx.save();
    ctx.beginPath();
    ctx.rect(plot.bbox.left, plot.bbox.top, plot.bbox.width, plot.bbox.height);
    ctx.clip();
    ctx.beginPath();
    ctx.setLineDash([2, 4]);
    ctx.strokeStyle = ink("--soft");
    ctx.moveTo(plot.valToPos(left, "x", true), plot.valToPos(low, "y", true));
    ctx.lineTo(plot.valToPos(right, "x", true), plot.valToPos(high, "y", true));
    ctx.stroke();
    ctx.restore();
  }

  /* A panel: a slider over its x, whose value is what the lines are there. */
  function draw(panel, cells, head) {
    const last = panel.x.length - 1;
    const slider = element("div", {
      class: "plot", role: "slider", tabindex: 0,
      "aria-label": `${panel.title}: ${panel.xLabel}`,
      "aria-valuemin": panel.x[0], "aria-valuemax": panel.x[last], "aria-valuenow": panel.x[0],
      "aria-valuetext": "arrow keys read the values",
    });
    const holder = element("div", {class: "panel"}, element("p", {}, panel.title), slider);
    const moved = (plot) => {
      const index = plot.cursor.left < 0 ? null : plot.cursor.idx;
      const at = index == null ? "" : `at ${told(panel.x[index])}`;
      head.textContent = at;
      const said = [];
      panel.lines.forEach((line, number) => {
        const shown = plot.series[number + 1].show && index != null;
        const y = shown ? line.y[nearest(plot, number + 1, index)] : null;
        const value = !shown ? "" : panel.yLimit && y != null ? y.toFixed(3) : told(y);
        cells.get(line.name).textContent = value;
        if (shown) said.push(`${line.name} ${value}`);
      });
      if (index == null) return;
      slider.setAttribute("aria-valuenow", panel.x[index]);
      slider.setAttribute("aria-valuetext", `${panel.xLabel} ${told(panel.x[index])}: ${said.join(", ")}`);
    };
    const data = [panel.x, ...panel.lines.map((line) => line.y)];
    const plot = new uPlot(options(panel, 320, moved), data, slider);
    slider.addEventListener("keydown", (event) => {
      const steps = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -20, PageUp: 20};
      const here = plot.cursor.left < 0 || plot.cursor.idx == null ? 0 : plot.cursor.idx;
      let to = event.key in steps ? here + steps[event.key] : null;
      if (event.key === "Home") to = 0;
      if (event.key === "End") to = last;
      if (event.key === "Escape") plot.setCursor({left: -10, top: -10});
      if (to == null) return;
      event.preventDefault();
      const x = panel.x[Math.min(Math.max(to, 0), last)];
      plot.setCursor({left: plot.valToPos(x, "x"), top: 0});
    });
    return {holder, plot, slider};
  }

  /* A table: a row a name, whose button hides it in all panels; a column a panel. */
  function legend(panels) {
    const lines = new Map(panels.flatMap((panel) => panel.lines.map((line) => [line.name, line])));
    const heads = panels.map(() => element("span", {}));
    const cells = panels.map(() => new Map());
    const buttons = new Map();
    const rows = [...lines].map(([name, line]) => {
      const mark = element("span", {class: "mark"});
      mark.style.borderTop = `${line.bold ? 3 : 2}px ${line.dashed ? "dashed" : "solid"} ${line.colour ?? "var(--text)"}`;
      const button = element("button", {type: "button", "aria-pressed": line.shown}, mark, name);
      buttons.set(name, button);
      const values = panels.map((panel, number) => {
        const cell = element("td", {});
        cells[number].set(name, cell);
        return cell;
      });
      return element("tr", {}, element("th", {scope: "row"}, button), ...values);
    });
    const columns = panels.map((panel, number) =>
      element("th", {scope: "col"}, panel.title, element("br", {}), heads[number]));
    const head = element("tr", {}, element("th", {scope: "col"}, "Shown"), ...columns);
    const table = element("table", {class: "legend"}, element("thead", {}, head), element("tbody", {}, ...rows));
    const frame = element("div", {class: "scroll", role: "region", tabindex: 0, "aria-label": "Legend"}, table);
    return {frame, buttons, cells, heads};
  }

  function show(figure, panels) {
    const {frame, buttons, cells, heads} = legend(panels);
    const plots = panels.map((panel, number) => draw(panel, cells[number], heads[number]));
    const each = (name, act) => plots.forEach(({plot}, number) => {
      const series = 1 + panels[number].lines.findIndex((line) => line.name === name);
      if (series > 0) act(plot, series);
    });
    for (const [name, button] of buttons) {
      button.addEventListener("click", () => {
        const pressed = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", pressed);
        each(name, (plot, series) => plot.setSeries(series, {show: pressed}));
      });
      const focus = (on) => () => each(name, (plot, series) => plot.setSeries(on ? series : null, {focus: true}));
      for (const begin of ["mouseenter", "focus"]) button.addEventListener(begin, focus(true));
      for (const end of ["mouseleave", "blur"]) button.addEventListener(end, focus(false));
    }
    figure.querySelector(".drawn").append(
      element("div", {class: "panels"}, ...plots.map((each) => each.holder)), frame);
    figure.classList.add("live");
    const fit = new ResizeObserver(() => plots.forEach(({plot, slider}) => {
      const width = slider.clientWidth;
      if (width > 0 && width !== plot.width) plot.setSize(size(width));
    }));
    plots.forEach(({slider}) => fit.observe(slider));
    drawn.push(...plots.map(({plot}) => plot));
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((plot) => plot.redraw()));

  return (name, panels) => {
    const figure = document.querySelector(`figure[data-curves="${CSS.escape(name)}"]`);
    const near = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      near.disconnect();
      show(figure, panels);
    }, {rootMargin: "600px"});
    near.observe(figure);
  };
})();
