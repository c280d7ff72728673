// An image goes to POST /predict; what comes back is shown. Nothing is loaded from elsewhere.
// `element` is of report.js, which stands before this in the file that is served.
const at = (id) => document.getElementById(id);
const WORDS = {
  map_guides: "what looks like a defect of the auxiliary set, where the map is highest",
  map_self_distance: "what is unlike the rest of this image, where the map is highest",
  detection: "what the whole image has in common with defects of the auxiliary set",
  self_distance: "how unlike the rest of this image its strangest patches are",
  bank: "how unlike the normal images it is",
};
const signed = (value, digits = 3) =>
  (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const fixed = (value) => value.toFixed(4).replace("-", "−");
let running = null; // aborts the request of an image that another one replaces

async function judge(file, dropped = 1) {
  running?.abort();
  const mine = (running = new AbortController());
  at("problem").hidden = true;
  at("result").hidden = true;
  at("status").textContent = `Judging ${file.name || "the image"} …`;
  try {
    show(await answerTo(file, mine.signal));
    const alone = dropped === 1 ? "" : ` (the first of ${dropped} files; the others were not judged: give one at a time)`;
    at("status").textContent = `${file.name || "The image"}: ${at("verdict").textContent}${alone}`;
  } catch (error) {
    if (mine.signal.aborted) return;
    at("status").textContent = "";
    at("problem").textContent = error.message;
    at("problem").hidden = false;
  }
}

async function answerTo(file, signal) {
  const query = new URLSearchParams({ name: file.name, overlay: true, photo: true });
  query.set("explain", at("form").dataset.explain); // a bank alone has no atoms
  const request = { method: "POST", body: file, signal };
  request.headers = { "Content-Type": "application/octet-stream" };
  const response = await fetch(`predict?${query}`, request).catch((error) => {
    throw signal.aborted ? error : new Error("The server does not answer. Is it still running?");
  });
  if (response.headers.get("Content-Type") !== "application/json") // of too many connections, or a proxy's
    throw new Error(`The server is busy (${response.status}). Try again in a moment.`);
  const content = await response.json();
  if (!response.ok) throw new Error(content.error.includes(file.name) ? content.error : `${file.name}: ${content.error}`);
  return content;
}

function show(answer) {
  const { photo_jpeg: photo, overlay_jpeg: overlay, explanation, ...line } = answer;
  const verdict = at("verdict");
  verdict.className = line.decision ?? "";
  verdict.textContent = { anomalous: "Anomalous", normal: "Normal" }[line.decision] ?? "No decision: there is no threshold";
  // Two values that would read the same have all their digits.
  const alike = line.threshold !== null && line.score !== line.threshold && fixed(line.score) === fixed(line.threshold);
  const told = (value) => (alike ? String(value).replace("-", "−") : fixed(value));
  const facts = [["Score", told(line.score)]];
  if (line.threshold !== null) facts.push(["Threshold (anomalous above it)", told(line.threshold)]);
  if (line.p_value !== null) facts.push(["p-value: share of normal images that score as high", line.p_value.toPrecision(2)]);
  if (line.normals !== null) facts.push(["Your normal images that score as high", `${line.normals_above} of ${line.normals}`]);
  facts.push(["Map's highest value", line.peak.toFixed(3)], ["Size", `${line.width} × ${line.height} pixels`], ["Method protocol", line.protocol]);
  if (line.supervision) facts.push(["Supervision", line.supervision]);
  at("facts").replaceChildren(...facts.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  at("photo").src = `data:image/jpeg;base64,${photo}`;
  at("photo").alt = `The photograph ${line.path}`;
  at("map").src = `data:image/jpeg;base64,${overlay}`;
  at("layers").classList.toggle("tiny", Math.max(line.width, line.height) < 96);
  outline(line);
  regions(line);
  at("why").replaceChildren(...why(explanation));
  at("json").textContent = JSON.stringify(line, null, 1);
  at("result").hidden = false;
  at("result").focus({ preventScroll: true });
}

function outline(line) {
  const svg = at("outlines");
  svg.setAttribute("viewBox", `0 0 ${line.width} ${line.height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-label", `Outlines of ${line.regions.length} regions`);
  svg.replaceChildren(...["under", "over"].flatMap((kind) => line.regions.map((region) =>
    element("polygon", { points: region.polygon.map((point) => point.join(",")).join(" "), class: kind }))));
}

function regions(line) {
  const none = line.pixel_threshold === null
    ? "No pixel threshold is set, so no regions are shown."
    : `No pixel of the map is above the pixel threshold, ${line.pixel_threshold}.`;
  const more = line.regions_left_out ? `${line.regions_left_out} more regions are not listed and not outlined.` : "";
  at("no-regions").textContent = line.regions.length ? more : none;
  at("pixel-threshold").textContent = line.pixel_threshold;
  at("regions-box").hidden = !line.regions.length;
  at("regions").tBodies[0].replaceChildren(...line.regions.map((region) => {
    const values = [region.peak.toFixed(3), region.mean.toFixed(3), region.area, ...region.bbox];
    return element("tr", {}, element("th", { scope: "row" }, region.number), ...values.map((value) => element("td", {}, value)));
  }));
}

function why(explanation) {
  if (!explanation) return [element("p", {}, "A bank alone uses no guides: there is nothing to take apart.")];
  const parts = Object.entries(explanation.components).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const list = element("ul", { id: "components" },
    ...parts.map(([name, value]) => element("li", {}, `${signed(value)}: ${WORDS[name] ?? name}`)));
  const made = [element("p", {}, `The score ${signed(explanation.score)} is the detector's bias, ${signed(explanation.bias)}, and the sum of:`), list];
  const apart = explanation.atoms.filter((atom) => atom.excess !== undefined).sort((a, b) => Math.abs(b.excess) - Math.abs(a.excess));
  const total = apart.reduce((sum, atom) => sum + Math.abs(atom.excess), 0);
  if (total > 0) {
    const atoms = element("ul", { id: "atoms" }, ...apart.slice(0, 5).map((atom) => {
      const share = Math.round(100 * Math.abs(atom.excess) / total);
      const side = atom.excess > 0 ? "for" : "against";
      return element("li", {}, `${signed(atom.excess)}: atom ${atom.layer}-${atom.atom}, ${side} a defect (${share} % of the sum of all atoms' sizes)`);
    }));
    made.push(element("p", {}, "The strongest atoms where the map is highest, compared with the rest of the image:"), atoms);
  }
  return made;
}

const form = at("form");
form.addEventListener("submit", (event) => event.preventDefault());
for (const id of ["file", "camera"]) {
  at(id).addEventListener("change", (event) => {
    if (event.target.files.length) judge(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // a dropped file would replace the page
    form.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) judge(event.dataTransfer.files[0], event.dataTransfer.files.length);
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) judge(event.clipboardData.files[0], event.clipboardData.files.length);
});
function blend() {
  at("map").style.opacity = at("opacity").value / 100;
  at("opacity-value").textContent = `${at("opacity").value} %`;
}
at("opacity").addEventListener("input", blend);
at("outlined").addEventListener("change", (event) => { at("outlines").toggleAttribute("hidden", !event.target.checked); });
blend();
