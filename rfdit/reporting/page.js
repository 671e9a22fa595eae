for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), column = head.cellIndex, body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = head.classList.contains("number");
    const value = (row) => row.cells[column].dataset.value;
    const order = (a, b) => numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    const rows = Array.from(body.rows).sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");  // what is missing stays below
      return up ? order(x, y) : order(y, x);
    });
    body.append(...rows);
  });
}

const dialog = document.querySelector("dialog"), [title, large] = dialog.children;
const images = [...document.querySelectorAll(".zoom img")];
let shown = 0;
function enlarge(index) {
  shown = (index + images.length) % images.length;
  const image = images[shown];
  title.textContent = image.alt;
  large.src = image.src;
  large.className = image.closest(".plots") ? "plot" : "";
  if (!dialog.open) dialog.showModal();
}
images.forEach((image, index) => image.parentNode.addEventListener("click", () => enlarge(index)));
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", ({ key }) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
  if (step) enlarge(shown + step);
});

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(button.parentNode.querySelector("code"));
    // Works for files and over http too, where there is no navigator.clipboard.
    button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
  });
}
