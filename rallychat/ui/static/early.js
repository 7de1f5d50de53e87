// @ts-check
// Before anything is painted: the colours that were chosen on the page. Not a module, as those wait.
try {
  const chosen = localStorage.getItem("rallychat.theme");
  const dark = chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
} catch {
  document.documentElement.dataset.theme = "light";
}
