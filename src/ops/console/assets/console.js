// The console's script. Everything can be read without it; it keeps pages live, listens to keys, and copies.
"use strict";

(() => {
  const main = document.getElementById("main");
  const said = document.getElementById("said");
  const say = (text) => { if (said) said.textContent = text; };
  document.documentElement.classList.add("scripts");

  // How long ago, as the server writes it.
  const units = (seconds) => {
    const [d, h, m, s] = [86400, 3600, 60, 1].map((unit) => Math.floor(seconds / unit));
    if (d) return `${d}d ${h % 24}h`;
    if (h) return `${h}h ${m % 60}m`;
    if (m) return `${m}m ${s % 60}s`;
    return `${s}s`;
  };
  const age = (time) => {
    const seconds = Math.round((Date.now() - Date.parse(time.dateTime)) / 1000);
    if (Number.isNaN(seconds)) return;
    const text = seconds < -1 ? `in ${units(-seconds)}` : seconds < 1 ? "just now" : `${units(seconds)} ago`;
    if (time.textContent !== text) time.textContent = text;
  };
  const ages = () => { if (!document.hidden) document.querySelectorAll("time").forEach(age); };
  ages();
  setInterval(ages, 1000);

  // Copying, over plain HTTP too.
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const field = document.createElement("textarea");
      field.value = text;
      field.className = "unseen";
      document.body.append(field);
      field.select();
      const done = document.execCommand("copy");
      field.remove();
      return done;
    }
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const done = await copy(button.dataset.copy);
    button.focus();
    button.textContent = done ? "copied" : "select it";
    say(done ? "Copied" : "Copying is not possible here");
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });

  // Nothing is sent twice by two clicks.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.sent) { event.preventDefault(); return; }
    form.dataset.sent = "yes";
    setTimeout(() => { delete form.dataset.sent; }, 10000);
  });
  window.addEventListener("pageshow", () => {
    document.querySelectorAll("form[data-sent]").forEach((form) => { delete form.dataset.sent; });
  });

  // Keys, off while somebody types.
  let led = false;
  const rows = () => [...document.querySelectorAll("[data-row]")];
  const move = (step) => {
    const all = rows();
    if (!all.length) return;
    const at = all.findIndex((row) => row.classList.contains("at"));
    const next = all[Math.min(Math.max(at + step, 0), all.length - 1)];
    all.forEach((row) => row.classList.remove("at"));
    next.classList.add("at");
    const link = next.querySelector("a[href]");
    if (link) link.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  };
  const here = () => document.querySelector("[data-row].at");
  const typing = (target) => target.closest("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]");
  const off = () => localStorage.getItem("keys") === "off";
  const switched = document.getElementById("keys");
  const tell = () => {
    if (!switched) return;
    switched.textContent = off() ? "Turn these keys on" : "Turn these keys off";
    switched.setAttribute("aria-pressed", String(off()));
  };
  switched?.addEventListener("click", () => { localStorage.setItem("keys", off() ? "on" : "off"); tell(); });
  tell();
  document.addEventListener("keydown", (event) => {
    if (off() || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (typing(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const key = event.key;
    if (led) {
      led = false;
      const way = [...document.querySelectorAll("a[data-key]")].find((link) => link.dataset.key === key);
      if (way) { event.preventDefault(); location.assign(way.href); }
      return;
    }
    const act = {
      "/": () => document.getElementById("q")?.focus(),
      "g": () => { led = true; setTimeout(() => { led = false; }, 1500); },
      "j": () => move(1),
      "k": () => move(-1),
      "x": () => here()?.querySelector("input[type=checkbox]")?.click(),
      "r": () => document.querySelector("[data-verb=r]")?.click(),
      "?": () => location.assign("/keys"),
    }[key];
    if (act) { event.preventDefault(); act(); }
  });

  // What is live. It rests while the page is hidden, and stays paused when a person paused it.
  const path = main?.dataset.live;
  if (!path) return;
  const button = document.getElementById("pause");
  let paused = sessionStorage.getItem("paused") === "yes";
  let source = null;
  // Somebody is at work in it: it changes when they are done.
  const busy = () => {
    if (main.querySelector("details[open] input:not([type=hidden])")?.matches(":focus")) return true;
    const selection = getSelection();
    return (!selection.isCollapsed && main.contains(selection.anchorNode)) ||
      (main.contains(document.activeElement) && typing(document.activeElement)) ||
      main.querySelector("input[type=checkbox]:checked");
  };
  // Replaces the parts that differ, so that focus and what is unfolded stay where they are.
  const merge = (old, fresh) => {
    const [olds, news] = [[...old.children], [...fresh.children]];
    const alike = olds.length === news.length &&
      olds.every((child, n) => child.tagName === news[n].tagName && child.id === news[n].id);
    if (!alike || !olds.length) {
      const row = [...old.querySelectorAll("[data-row]")].findIndex((one) => one.classList.contains("at"));
      const focus = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      old.replaceChildren(...fresh.childNodes);
      if (row >= 0) old.querySelectorAll("[data-row]")[row]?.classList.add("at");
      if (focus) [...old.querySelectorAll("a[href]")].find((link) => link.getAttribute("href") === focus)?.focus({ preventScroll: true });
      return;
    }
    olds.forEach((child, n) => {
      const still = child.cloneNode(true);
      still.querySelectorAll(".at").forEach((one) => { one.classList.remove("at"); if (!one.className) one.removeAttribute("class"); });
      if (child.tagName === "DETAILS") news[n].open = child.open;
      if (child.tagName === "TIME" ? child.dateTime === news[n].dateTime : still.isEqualNode(news[n])) return;
      const plain = child.tagName === "svg" || child.tagName === "TIME" || child.tagName === "FORM" ||
        [...child.childNodes, ...news[n].childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      if (plain || !child.children.length) child.replaceWith(news[n]);
      else {
        for (const { name } of [...child.attributes]) if (!news[n].hasAttribute(name)) child.removeAttribute(name);
        for (const { name, value } of news[n].attributes) child.setAttribute(name, value);
        merge(child, news[n]);
      }
    });
  };
  const parse = (html) => new DOMParser().parseFromString(html, "text/html").body;
  // What came while somebody was at work in the page: the newest is shown when they are done.
  let pending = null;
  const show_pending = () => {
    if (pending === null || busy()) return;
    merge(main, parse(pending));
    pending = null;
    ages();
  };
  setInterval(show_pending, 1000);
  const open = () => {
    if (source || paused || document.hidden) return;
    source = new EventSource(`/live?path=${encodeURIComponent(path)}`);
    source.addEventListener("main", (event) => { pending = JSON.parse(event.data); show_pending(); });
    source.addEventListener("verdict", (event) => {
      const fresh = parse(JSON.parse(event.data)).firstElementChild;
      document.getElementById("verdict")?.replaceWith(fresh);
    });
    source.addEventListener("moment", (event) => {
      const { at, open: letters } = JSON.parse(event.data);
      const time = document.querySelector("#as-of time");
      if (time) {
        time.dateTime = at;
        time.title = `${at.replace("T", " ").replace("Z", "")} UTC`;
        age(time);
      }
      const count = document.getElementById("open");
      if (count && letters !== null) {
        count.firstChild.data = letters.toLocaleString("en-US");
        count.hidden = letters === 0;
      }
    });
    source.addEventListener("error", () => {
      document.body.classList.add("lost");
      // A browser gives a stream up for good that was refused, such as after the session's end.
      if (source?.readyState === EventSource.CLOSED) {
        close();
        setTimeout(open, 5000);
      }
    });
    source.addEventListener("open", () => { document.body.classList.remove("lost"); });
  };
  const close = () => { source?.close(); source = null; };
  const show = () => {
    if (!button) return;
    button.textContent = paused ? "Resume live updates" : "Pause live updates";
    button.setAttribute("aria-pressed", String(paused));
  };
  button?.addEventListener("click", () => {
    paused = !paused;
    sessionStorage.setItem("paused", paused ? "yes" : "no");
    show();
    paused ? close() : open();
  });
  document.addEventListener("visibilitychange", () => { document.hidden ? close() : open(); });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);
  show();
  open();
})();
