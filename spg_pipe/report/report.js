// What the pages do beyond lying there: sort tables, move a threshold, filter images, fade maps.
// A classic script, so that it runs from a file. Without it everything that was computed is there.
// `serve` puts it before its page.js, which uses `element`.
"use strict";

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "line", "text", "polygon"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const minus = (value) => String(value).replace("-", "−");
  const known = (value) => Number.isFinite(value);
  // As in tables, four digits after the point; of what is small four that count.
  const short = (value) => Number(Math.abs(value) < 0.1 ? value.toPrecision(4) : value.toFixed(4));

  // Tables -------------------------------------------------------------------------------------

  const number = (text) => {
    const match = text.replace(/−/g, "-").replace(/,/g, "").match(/^\s*[-+]?\d*\.?\d+(e[-+]?\d+)?/i);
    return match ? Number(match[0]) : NaN;
  };

  function sortable(table) {
    const body = table.tBodies[0];
    const rows = [...body.rows].filter((row) => !row.classList.contains("summary"));
    if (rows.length < 2) return;
    const summary = [...body.rows].filter((row) => row.classList.contains("summary"));
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const texts = new Map(rows.map((row) => [row, row.cells[column].textContent.trim()]));
      const values = new Map([...texts].map(([row, text]) => [row, number(text)]));
      const numeric = [...texts].every(([row, text]) => text === "–" || known(values.get(row)));
      const button = element("button", { type: "button", class: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const first = numeric ? "descending" : "ascending", second = numeric ? "ascending" : "descending";
        const next = before === first ? second : before === second ? null : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        const sign = next === "descending" ? -1 : 1;
        const compare = (a, b) => {
          if (!numeric) return sign * texts.get(a).localeCompare(texts.get(b), undefined, { numeric: true });
          const [x, y] = [values.get(a), values.get(b)];
          return known(x) && known(y) ? sign * (x - y) : known(y) - known(x);
        };
        body.append(...(next ? [...rows].sort(compare) : rows), ...summary);
      });
    });
  }

  // Maps ---------------------------------------------------------------------------------------

  function mapControls() {
    const root = document.documentElement;
    all("input.opacity").forEach((input) => input.addEventListener("input", () => {
      root.style.setProperty("--map", input.value);
    }));
    all("input.outlines").forEach((input) => input.addEventListener("change", () => {
      root.classList.toggle("no-outlines", !input.checked);
    }));
  }

  // Gallery ------------------------------------------------------------------------------------

  const VERDICTS = {
    anomalous: ["missed", "found"], normal: ["passed", "false alarm"], unknown: ["normal", "anomalous"],
    undecided: ["not above", "above"],
  };

  const numbers = (text) => text.split(" ").filter(Boolean).map(Number);

  function gallery(holder) {
    const images = all("figure", holder).map((element) => ({
      element,
      group: element.dataset.group,
      defect: element.dataset.defect,
      label: element.dataset.label,
      score: Number(element.dataset.score),
      verdict: element.dataset.verdict,
      said: element.querySelector(".verdict"),
      name: element.querySelector(".name").textContent,
    }));
    const starts = new Map(all("#thresholds [data-group]").map((row) => [
      row.dataset.group, {
        value: Number(row.dataset.threshold), says: row.dataset.says, decides: row.dataset.decides === "1",
        others: numbers(row.dataset.others), normals: numbers(row.dataset.normals),
      },
    ]));
    // Scores that count without a picture.
    const others = [...starts].flatMap(([group, { others: scores }]) =>
      scores.map((score) => ({ group, score, label: "unknown" })));
    const { rule } = byId("threshold-says").dataset;
    const differ = new Set([...starts.values()].map((start) => start.value)).size > 1;
    const chosen = (id) => (byId(id) ? byId(id).value : "");
    const words = (id) => byId(id).selectedOptions[0].textContent;
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const id of ["category", "defect", "verdict", "order", "name"]) {
      const input = byId(id), value = asked.get(id);
      if (input && value !== null && (id === "name" || [...input.options].some((o) => o.value === value))) {
        input.value = value;
      }
    }
    let view, threshold;

    // Where categories have thresholds of their own, all of them together are shown by how far a
    // score is above that of its category: 0 is then the threshold of each.
    function look(group) {
      const relative = group === "" && differ;
      const inView = [...images, ...others].filter((image) => group === "" || image.group === group);
      for (const image of inView) image.base = relative ? starts.get(image.group).value : 0;
      for (const image of inView) image.x = relative ? image.score - image.base : image.score;
      const first = starts.get(group === "" ? images[0].group : group);
      const start = relative ? 0 : first.value;
      // Groups that share one calibration share its images, which count once.
      const calibrated = [...starts].filter(([name]) => group === "" || name === group)
        .map(([, each]) => each.normals.map((score) => (relative ? score - each.value : score)));
      const normals = [...new Map(calibrated.map((scores) => [scores.join(" "), scores])).values()].flat();
      const ends = [...inView.map((image) => image.x), ...normals, start];
      let low = ends.reduce((a, b) => Math.min(a, b)), high = ends.reduce((a, b) => Math.max(a, b));
      const margin = (high - low) * 0.02 || 0.5;
      const sources = new Set([...starts.values()].map((each) => each.says));
      view = {
        images: inView, normals, relative, start, low: low - margin, high: high + margin,
        says: relative && sources.size > 1 ? "see the thresholds at the start" : first.says,
      };
      threshold = start;
      const slider = byId("threshold");
      slider.min = view.low;
      slider.max = view.high;
    }

    function judge() {
      const counts = {};
      for (const image of view.images) {
        // By hand a label is enough.
        const decides = starts.get(image.group).decides || (image.label !== "unknown" && threshold !== view.start);
        const verdict = VERDICTS[decides ? image.label : "undecided"][Number(image.score > image.base + threshold)];
        counts[verdict] = (counts[verdict] || 0) + 1;
        if (image.element && verdict !== image.verdict) {
          image.verdict = image.element.dataset.verdict = verdict;
          image.said.textContent = verdict;
        }
      }
      tell(counts);
      histogram.mark(threshold);
    }

    function tell(counts) {
      const of = (name) => counts[name] || 0;
      const share = (part, whole) => (whole ? (part / whole).toFixed(3) : "–");
      const [hits, missed, alarms, passed] = ["found", "missed", "false alarm", "passed"].map(of);
      const values = {
        tp: hits, fn: missed, fp: alarms, tn: passed, above: of("anomalous") + of("above"),
        below: of("normal") + of("not above"),
        precision: share(hits, hits + alarms), recall: share(hits, hits + missed),
        fpr: share(alarms, alarms + passed),
      };
      for (const [id, value] of Object.entries(values)) if (byId(id)) byId(id).textContent = value;
      const shown = short(threshold);
      const slider = byId("threshold");
      slider.value = threshold;
      slider.setAttribute("aria-valuetext", view.relative ? `${shown} above each threshold` : String(shown));
      byId("threshold-value").value = shown;
      const only = chosen("category") ? `Category ${words("category")}. ` : "";
      byId("threshold-says").textContent = `${only}${told(shown)} ${rule}`;
    }

    function told(shown) {
      const moved = threshold !== view.start;
      if (view.relative) {
        if (!moved) return `Every category at its own threshold (${view.says}); scale and order are of how far a score is above it.`;
        return `Every category at its own threshold ${shown < 0 ? "−" : "+"} ${Math.abs(shown)}, moved by hand.`;
      }
      if (!moved) return `Threshold ${minus(shown)}: ${view.says}.`;
      const start = minus(short(view.start));
      return `Threshold ${minus(shown)}, moved by hand. The page started at ${start}: ${view.says}.`;
    }

    // Read out once the threshold rests, not at each of its steps.
    let resting;
    function rest() {
      clearTimeout(resting);
      resting = setTimeout(() => {
        byId("counts-said").textContent = all("#counts > div").map((pair) =>
          `${pair.querySelector("dt").textContent} ${pair.querySelector("dd").textContent}`).join(", ");
        remember();
      }, 400);
    }

    function remember() {
      const state = new URLSearchParams();
      for (const id of ["category", "defect", "verdict", "order", "name"]) {
        if (chosen(id) && !(id === "order" && chosen(id) === "high")) state.set(id, chosen(id));
      }
      if (threshold !== view.start) state.set("threshold", threshold);
      const hash = state.toString();
      if (hash !== location.hash.slice(1)) history.replaceState(null, "", `#${hash}`);
    }

    const ORDERS = {
      high: (a, b) => b.x - a.x,
      low: (a, b) => a.x - b.x,
      near: (a, b) => Math.abs(a.x - threshold) - Math.abs(b.x - threshold),
      name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
    };

    function order() {
      const sorted = view.images.filter((image) => image.element).sort(ORDERS[chosen("order")]);
      // To move thousands of images takes a browser a second: not where they lie in order, as at first.
      if (sorted.some((image, position) => holder.children[position] !== image.element)) {
        holder.append(...sorted.map((image) => image.element));
      }
    }

    function filter() {
      const group = chosen("category"), defect = chosen("defect"), name = chosen("name").toLowerCase();
      const verdicts = chosen("verdict") ? chosen("verdict").split(",") : null;
      let shown = 0;
      for (const image of images) {
        const fits = (group === "" || image.group === group) && (defect === "" || image.defect === defect)
          && (!verdicts || verdicts.includes(image.verdict)) && image.name.toLowerCase().includes(name);
        if (image.element.hidden === fits) image.element.hidden = !fits;
        shown += fits;
      }
      const said = ["category", "defect", "verdict"].filter(chosen).map((id) => `${id} ${words(id)}`);
      if (name) said.push(`"${name}" in the name`);
      paper();
      byId("shown").textContent = `${shown} of ${images.length} images${said.length ? `: ${said.join("; ")}` : ""}`;
    }

    function move(value) {
      if (!known(value)) return;
      // Steps there and back sum up to almost the start.
      threshold = Math.abs(value - view.start) < 1e-9 * (view.high - view.low) ? view.start : value;
      judge();
      if (chosen("verdict")) filter();
      rest();
    }

    function begin() {
      look(chosen("category"));
      histogram.draw(view);
      judge();
      order();
      filter();
    }

    const histogram = histogramOf(byId("histogram"), move);
    byId("threshold").addEventListener("input", (event) => move(Number(event.target.value)));
    byId("threshold").addEventListener("change", () => { if (chosen("order") === "near") order(); });
    byId("threshold-value").addEventListener("change", ({ target }) => {
      if (target.reportValidity()) move(target.valueAsNumber); // else the browser says what it takes
    });
    byId("threshold-reset").addEventListener("click", () => move(view.start));
    if (byId("category")) byId("category").addEventListener("change", () => { begin(); rest(); });
    for (const id of ["defect", "verdict"]) {
      if (byId(id)) byId(id).addEventListener("change", () => { filter(); remember(); });
    }
    byId("order").addEventListener("change", () => { order(); paper(); remember(); });
    byId("name").addEventListener("input", () => { filter(); remember(); });
    all("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
    begin();
    if (asked.has("threshold")) move(Number(asked.get("threshold")));
    new ResizeObserver(() => { histogram.draw(view); histogram.mark(threshold); }).observe(byId("histogram"));
    const target = byId(location.hash.slice(1));
    if (target && holder.contains(target)) target.scrollIntoView();
  }

  // Histogram ----------------------------------------------------------------------------------

  const HIGH = 200, EDGE = 8, BELOW = 22, BINS = 48;

  function ticks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
    const values = [];
    for (let at = Math.ceil(low / step); at * step <= high; at += 1) values.push(Number((at * step).toPrecision(12)));
    return values;
  }

  // Anomalous images stand above the line and normal ones hang below it: told apart without colour.
  function histogramOf(holder, move) {
    let line, x;
    function draw(view) {
      const wide = Math.max(holder.clientWidth, 200), within = wide - 2 * EDGE;
      x = {
        // A threshold that was typed may lie beyond.
        of: (value) => EDGE + Math.min(Math.max((value - view.low) / (view.high - view.low), 0), 1) * within,
        at: (pixel) => view.low + ((pixel - EDGE) / within) * (view.high - view.low),
      };
      const bars = { anomalous: new Array(BINS).fill(0), unknown: new Array(BINS).fill(0), normal: new Array(BINS).fill(0) };
      const slot = (value) => Math.min(BINS - 1, Math.floor(((x.of(value) - EDGE) / within) * BINS));
      for (const image of view.images) {
        bars[image.label][slot(image.x)] += 1;
      }
      for (const each of view.normals) bars.normal[slot(each)] += 1;
      const above = Math.max(...bars.anomalous.map((count, bin) => count + bars.unknown[bin]));
      const below = Math.max(...bars.normal);
      const unit = (HIGH - BELOW - 36) / (above + below), zero = 18 + above * unit;
      const total = (label) => view.images.filter((image) => image.label === label).length;
      const reference = view.normals.length > 0;
      const words = {
        anomalous: "anomalous", unknown: reference ? "these images" : "no label",
        normal: "normal",
      };
      const said = Object.keys(words).filter(total).map((label) => `${total(label)} ${words[label]}`);
      if (reference) said.push(`${view.normals.length} normal images of the calibration`);
      const svg = element("svg", {
        width: wide, height: HIGH, viewBox: `0 0 ${wide} ${HIGH}`, role: "img",
        "aria-label": `Histogram of scores from ${view.low.toPrecision(3)} to ${view.high.toPrecision(3)}: ${said.join(", ")}`,
      });
      const width = within / BINS;
      const bar = (kind, bin, count, y, tall) => count && svg.append(element("rect", {
        class: kind, x: EDGE + bin * width + 0.5, width: Math.max(1, width - 1), y, height: Math.max(1.5, tall),
      }));
      for (let bin = 0; bin < BINS; bin += 1) {
        const [up, more, down] = [bars.anomalous[bin], bars.unknown[bin], bars.normal[bin]];
        bar("anomalous", bin, up, zero - Math.max(1.5, up * unit), up * unit);
        bar("unknown", bin, more, zero - (up + more) * unit, more * unit);
        bar("normal", bin, down, zero, down * unit);
      }
      svg.append(element("line", { class: "axis", x1: EDGE, x2: wide - EDGE, y1: zero, y2: zero }));
      for (const tick of ticks(view.low, view.high, Math.max(2, Math.floor(wide / 110)))) {
        svg.append(element("line", { class: "axis", x1: x.of(tick), x2: x.of(tick), y1: HIGH - BELOW, y2: HIGH - BELOW + 5 }));
        const ends = x.of(tick) < 30 ? "start" : x.of(tick) > wide - 30 ? "end" : "middle";
        svg.append(element("text", { x: x.of(tick), y: HIGH - 4, "text-anchor": ends }, minus(tick)));
      }
      const up = ["anomalous", "unknown"].filter(total).map((label) => words[label]).join(" and ");
      if (above) svg.append(element("text", { x: EDGE, y: 12 }, `↑ ${up}, up to ${above} in a bar`));
      if (below) svg.append(element("text", { x: EDGE, y: HIGH - BELOW - 4 }, `↓ normal${reference ? " images of the calibration" : ""}, up to ${below} in a bar`));
      line = element("line", { class: "threshold", y1: 17, y2: HIGH - BELOW - 17 });
      svg.append(line);
      holder.replaceChildren(svg);
    }
    const drag = (event) => {
      if (event.buttons) move(x.at(event.clientX - holder.getBoundingClientRect().left));
    };
    holder.addEventListener("pointerdown", drag);
    holder.addEventListener("pointermove", drag);
    return {
      draw,
      mark: (threshold) => ["x1", "x2"].forEach((end) => line.setAttribute(end, x.of(threshold))),
    };
  }

  // Printing does not wait for a picture that was never in sight: those of at most 200 images come at once.
  function paper() {
    if (document.readyState !== "complete") return; // what is in sight comes first
    const figures = all("#gallery figure:not([hidden])").slice(0, 200);
    const rooms = byId("gallery") ? figures : [document.body];
    rooms.flatMap((room) => all("img[loading=lazy]", room)).forEach((image) => { image.loading = "eager"; });
  }

  // What is printed names all thresholds.
  addEventListener("beforeprint", () => all("details").forEach((element) => { element.open = true; }));
  all(".js").forEach((element) => { element.hidden = false; });
  all("table.sortable").forEach(sortable);
  mapControls();
  addEventListener("load", paper);
  if (byId("gallery")) gallery(byId("gallery"));
})();
