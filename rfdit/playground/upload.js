// The field of an image to start from, as gr.HTML runs it. Its value is the file's name, a line end and a data URL.
const input = element.querySelector("input"), figure = element.querySelector("figure");
const [image, caption, remove] = figure.children;

function show(name, url) {
  figure.hidden = !name;
  image.hidden = !url;
  image.src = url ?? "";
  caption.textContent = name;
}
function choose(value) {
  props.value = value;
  show(...value.split("\n"));
}
input.addEventListener("change", () => {
  const [file] = input.files;
  if (!file) return;
  if (file.size > props.largest) {
    choose("");
    show(`${file.name} has ${file.size.toLocaleString()} bytes, which are too many.`);
    return;
  }
  const reader = new FileReader();
  reader.addEventListener("load", () => choose(`${file.name}\n${reader.result}`));
  reader.readAsDataURL(file);
});
remove.addEventListener("click", () => {
  input.value = "";
  choose("");
});
watch("value", () => {  // when a result of the history brings its image back
  input.value = "";
  show(...(props.value ?? "").split("\n"));
});
