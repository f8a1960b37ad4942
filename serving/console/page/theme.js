// Light, dark, or as the system has it. A plain script in the head, so that the first paint has it.
(() => {
  const KEY = "tidemill-theme", NEXT = { auto: "light", light: "dark", dark: "auto" };
  const root = document.documentElement;
  const theme = () => (localStorage.getItem(KEY) in NEXT ? localStorage.getItem(KEY) : "auto");
  const apply = () => {
    root.dataset.theme = theme();
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme()}`;
    dispatchEvent(new Event("theme"));
  };
  apply();
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").onclick = () => { localStorage.setItem(KEY, NEXT[theme()]); apply(); };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
    apply();
  });
})();
