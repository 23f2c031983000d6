"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const set = (node, text) => { if (node.textContent !== text) node.textContent = text; };

  // The live picture. The server writes all words, and the script only puts them in their places.
  const live = byId("live");
  if (live) {
    const picture = byId("picture"), stage = byId("stage"), verdict = byId("verdict");
    let state = null, heardAt = performance.now(), stream = null, timer = 0;

    const look = (name) => {
      verdict.className = `verdict ${name}`;
      stage.className = `stage ${name}`;
    };
    const facts = (pairs) => {
      const list = document.createElement("dl");
      list.className = "facts";
      for (const [name, value] of pairs) {
        for (const [tag, text] of [["dt", name], ["dd", value]]) {
          list.append(Object.assign(document.createElement(tag), { textContent: text }));
        }
      }
      byId("facts").replaceChildren(list);
    };
    const view = () => live.dataset.view;
    const load = () => {
      const source = state.picture ? `/live.jpg?view=${view()}&number=${state.number}` : "/static/none.svg";
      // The next picture replaces the old one when it is there, so that nothing flickers.
      const next = new Image();
      const wanted = state.number;
      next.onload = () => {
        if (state.number !== wanted) return;
        picture.src = source;
        picture.alt = `${view()} of record ${wanted}`;
        if (state.width) { picture.width = state.width; picture.height = state.height; }
      };
      next.src = source;
    };
    const show = (told) => {
      const before = state;
      state = told;
      heardAt = performance.now();
      look(state.look);
      set(byId("word"), state.word);
      set(byId("title"), state.title);
      set(byId("reason"), state.reason);
      set(byId("age"), `The picture is ${state.age} old`);
      const notes = state.notes.map((text) => Object.assign(document.createElement("li"), { textContent: text }));
      byId("notes").replaceChildren(...notes);
      if (!before || before.number !== state.number || before.picture !== state.picture) {
        facts(state.facts);
        load();
      }
    };
    const lost = () => {
      const seconds = Math.round((performance.now() - heardAt) / 1000);
      if (seconds < 4 || document.hidden) return;
      look("lost");
      set(byId("word"), "OFFLINE");
      set(byId("title"), `The station has not answered for ${seconds} s`);
      set(byId("reason"), "What is shown here is old.");
      set(byId("age"), `The picture is at least ${seconds} s old`);
    };
    const poll = async () => {
      try {
        const answer = await fetch("/live.json");
        if (answer.ok) show(await answer.json());
      } catch { /* The next attempt follows. */ }
    };
    const follow = () => {
      stream?.close();
      clearInterval(timer);
      if (document.hidden) return;
      heardAt = performance.now();
      stream = new EventSource("/live");
      stream.onmessage = (event) => show(JSON.parse(event.data));
      stream.onerror = () => {
        // A stream that the station refuses is not tried again by the browser. Asking from time to time goes on.
        if (stream.readyState === EventSource.CLOSED) { clearInterval(timer); timer = setInterval(poll, 2000); }
      };
    };
    document.addEventListener("visibilitychange", follow);
    addEventListener("pagehide", () => stream?.close());
    setInterval(lost, 1000);
    follow();

    for (const link of live.querySelectorAll("[data-view]")) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        live.dataset.view = link.dataset.view;
        for (const one of live.querySelectorAll("a[data-view]")) one.removeAttribute("aria-current");
        link.setAttribute("aria-current", "true");
        history.replaceState(null, "", link.getAttribute("href"));
        if (state) load();
      });
    }

    // The sections below are fetched as the server writes them. What somebody reads by keyboard is left alone.
    const status = byId("status");
    let isAsking = false;
    setInterval(async () => {
      if (document.hidden || isAsking || status.contains(document.activeElement)) return;
      isAsking = true;
      try {
        const answer = await fetch("/status");
        if (answer.ok) {
          const read = new DOMParser().parseFromString(await answer.text(), "text/html");
          status.replaceChildren(...read.body.childNodes);
        }
      } catch { /* The verdict tells that the station does not answer. */ }
      isAsking = false;
    }, 3000);
  }

  // The region of interest. The text of the corners is what is sent, and the drawing shows and writes it.
  const editor = byId("editor"), text = byId("points");
  if (editor && text) {
    const width = Number(editor.dataset.width), height = Number(editor.dataset.height);
    const make = (tag, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      return made;
    };
    // The whole frame is seen at once, also one that is higher than wide.
    editor.style.maxWidth = `min(860px, ${Math.round(70 * width / height)}vh)`;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}` });
    editor.querySelector("svg")?.remove();
    editor.append(svg);
    let kind = "inspect", polygons = [], draft = [], dragged = null, undone = [];

    const read = () => text.value.split("\n").map((line) => line.trim().split(/\s+/)).flatMap(([word, ...corners]) => {
      const points = corners.map((one) => one.split(",").map(Number));
      const isGood = (word === "inspect" || word === "ignore") && points.length > 2 &&
        points.every((one) => one.length === 2 && one.every(Number.isFinite));
      return isGood ? [{ kind: word, points }] : [];
    });
    const write = () => {
      text.value = polygons.map((one) => `${one.kind} ${one.points.map((p) => p.join(",")).join(" ")}`).join("\n");
    };
    const radius = () => 7 / svg.getScreenCTM().a;
    const draw = () => {
      const shapes = polygons.map((one) => make("polygon", { points: one.points.map((p) => p.join(",")).join(" "), class: one.kind }));
      if (draft.length) shapes.push(make("polyline", { points: draft.map((p) => p.join(",")).join(" "), class: `draft ${kind}` }));
      const corners = [...polygons.flatMap((one) => one.points), ...draft];
      svg.replaceChildren(...shapes, ...corners.map(([x, y]) => make("circle", { cx: x, cy: y, r: radius() })));
    };
    const keep = () => undone.push(JSON.stringify([polygons, draft]));
    const close = () => {
      if (draft.length < 3) return;
      polygons.push({ kind, points: draft });
      draft = [];
      write();
      draw();
    };
    const place = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const clamp = (value, top) => Math.min(top, Math.max(0, Math.round(value)));
      return [clamp(at.x, width), clamp(at.y, height)];
    };
    const near = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) < 2.2 * radius();
    editor.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const at = place(event);
      if (draft.length > 2 && near(at, draft[0])) { keep(); close(); return; }
      dragged = [...polygons.flatMap((one) => one.points), ...draft].find((one) => near(at, one)) ?? null;
      keep();
      if (dragged) editor.setPointerCapture(event.pointerId);
      else draft.push(at);
      draw();
    });
    editor.addEventListener("pointermove", (event) => {
      if (!dragged) return;
      [dragged[0], dragged[1]] = place(event);
      write();
      draw();
    });
    const drop = () => { dragged = null; };
    editor.addEventListener("pointerup", drop);
    editor.addEventListener("pointercancel", drop);
    for (const button of byId("draw-tools").querySelectorAll("button")) {
      button.addEventListener("click", () => {
        const tool = button.dataset.tool;
        if (tool === "inspect" || tool === "ignore") {
          kind = tool;
          for (const one of byId("draw-tools").querySelectorAll("[aria-pressed]")) one.setAttribute("aria-pressed", String(one === button));
        } else if (tool === "close") { keep(); close(); }
        else if (tool === "undo" && undone.length) [polygons, draft] = JSON.parse(undone.pop());
        else if (tool === "clear") { keep(); polygons = []; draft = []; }
        write();
        draw();
      });
    }
    text.addEventListener("input", () => { polygons = read(); draw(); });
    text.form.addEventListener("submit", close);
    addEventListener("resize", draw);
    polygons = read();
    draw();
  }
})();
