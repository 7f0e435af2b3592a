function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => compared(a.cells[at], b.cells[at], up ? 1 : -1)));
    });
  });
}

// What is not there comes last, whichever way is sorted.
function compared(a, b, sign) {
  const [x, y] = [a, b].map((cell) => cell.dataset.value);
  if (x === undefined && y === undefined) {
    const [said, other] = [a, b].map((cell) => cell.firstChild.textContent.trim());
    if ((said === "–") !== (other === "–")) return said === "–" ? 1 : -1;
    // A setting's values are text, among which a comparison of words would take 0.001858 for more than 0.02.
    const apart = Number(said) - Number(other);
    return sign * (Number.isNaN(apart) ? said.localeCompare(other, "en", { numeric: true }) : apart);
  }
  if (x === undefined || y === undefined) return x === undefined ? 1 : -1;
  return sign * (Number(x) - Number(y));
}

document.querySelectorAll("table.sortable").forEach(sortable);

const button = document.getElementById("theme");
const remembered = (() => { try { return localStorage.getItem("fedham-theme"); } catch { return null; } })();
if (remembered === "dark" || remembered === "light") root.dataset.theme = remembered;
const named = () => { button.textContent = isDark() ? "light" : "dark"; button.setAttribute("aria-label", `${button.textContent} colours`); };
const repaint = () => { named(); drawn.forEach((draw) => draw()); };
button.hidden = false;
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("fedham-theme", root.dataset.theme); } catch { /* a browser that keeps nothing for files */ }
  repaint();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

let folded = [];
let chosen;
window.addEventListener("beforeprint", () => {
  printing = true;
  chosen = root.dataset.theme;
  root.dataset.theme = "light"; // what figures are drawn with is read before the styles of print hold
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((details) => { details.open = true; });
  repaint();
});
window.addEventListener("afterprint", () => {
  printing = false;
  if (chosen) root.dataset.theme = chosen;
  else delete root.dataset.theme;
  folded.forEach((details) => { details.open = false; });
  repaint();
});
repaint();
