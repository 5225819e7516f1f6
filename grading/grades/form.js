"use strict";
// Points by hand: what is typed is an entry with its time, kept in this browser until the page itself has it.
(() => {
  const data = JSON.parse(document.getElementById("points").textContent);
  const prefix = "points-by-hand:";
  const key = prefix + data.collection;
  const id = (entry) => JSON.stringify([entry.time, entry.hand_in, entry.field, entry.value]);
  const inPage = new Set(data.entries.map(id));
  const bar = document.getElementById("points-bar");
  const take = document.getElementById("points-take");
  let entries = [...data.entries];
  let keeps = true;

  function stored(name) {
    try {
      const found = JSON.parse(localStorage.getItem(name) || "[]");
      return Array.isArray(found) ? found.filter((entry) => entry && typeof entry.time === "string") : [];
    } catch (error) {
      return [];
    }
  }

  function add(more) {
    const known = new Set(entries.map(id));
    entries = entries.concat(more.filter((entry) => !known.has(id(entry))));
    entries.sort((a, b) => (a.time < b.time ? -1 : a.time > b.time ? 1 : 0));
  }

  // Other tabs of the same page may have stored something since.
  function keep() {
    add(stored(key));
    try {
      localStorage.setItem(key, JSON.stringify(entries.filter((entry) => !inPage.has(id(entry)))));
      keeps = true;
    } catch (error) {
      keeps = false;
    }
  }

  function current(handIn, field) {
    let value = null;
    for (const entry of entries) if (entry.hand_in === handIn && entry.field === field) value = entry.value;
    return value;
  }

  function allows(field, value) {
    return field.values ? field.values.includes(value) : field.low <= value && value <= field.high;
  }

  const round = (value) => Math.round(value * 100) / 100;
  const text = (value) => (value === null ? "" : String(round(value)));

  function set(cell, value, byHand = false) {
    for (const place of document.querySelectorAll(`[data-cell="${cell}"]`)) {
      place.textContent = text(value);
      place.classList.toggle("given", byHand);
    }
  }

  function showHandIn(handIn, number) {
    const own = {};
    for (const field of data.fields) {
      const value = current(handIn.name, field.name);
      const input = document.querySelector(`[data-input="${number}:${field.name}"]`);
      if (document.activeElement !== input || input.checkValidity()) input.value = text(value);
      own[field.name] = value === null || !allows(field, value) ? null : round(value * handIn.left);
    }
    if (!handIn.graded) return;
    const task2 = own.task_2 === undefined || own.task_2 === null ? handIn.task_2 : own.task_2;
    set(`${number}:task_2`, task2, task2 === own.task_2);
    for (const field of ["task_1_1", "report"]) {
      if (field in own) set(`${number}:${field}`, own[field], own[field] !== null);
    }
    set(`${number}:total`, Math.max(0, handIn.task_1 + task2 + (own.task_1_1 || 0) + (own.report || 0)));
  }

  const unsaved = () => entries.filter((entry) => !inPage.has(id(entry))).length;

  function show() {
    data.hand_ins.forEach(showHandIn);
    bar.hidden = unsaved() === 0;
    document.getElementById("points-count").textContent = unsaved();
    document.getElementById("points-lost").hidden = keeps;
  }

  // Later than what the field has, whose clock may be ahead; other fields are not drawn along.
  function now(handIn, field) {
    const own = entries.filter((entry) => entry.hand_in === handIn && entry.field === field);
    const last = own.length ? Date.parse(own[own.length - 1].time) : 0;
    return new Date(Math.max(Date.now(), last + 1)).toISOString();
  }

  function entered(input) {
    const [number, name] = input.dataset.input.split(":");
    const field = data.fields.find((one) => one.name === name);
    const handIn = data.hand_ins[Number(number)].name;
    const value = input.value.trim() === "" ? null : Number(input.value);
    const wrong = input.validity.badInput || (value !== null && !(Number.isFinite(value) && allows(field, value)));
    input.setCustomValidity(wrong ? `It must be ${field.words}.` : "");
    if (wrong) return input.reportValidity();
    if (value === current(handIn, name)) return;
    keep(); // what other tabs have entered counts as earlier
    add([{ time: now(handIn, name), hand_in: handIn, field: name, value }]);
    keep();
    show();
  }

  function save() {
    keep();
    const content = { format: 1, collection: data.collection, entries };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" }));
    link.download = "points_by_hand.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  // Of pages of other gradings, such as one that was deleted: offered, never taken without being asked.
  function elsewhere() {
    const names = new Set(data.hand_ins.map((handIn) => handIn.name));
    const known = new Set(entries.map(id));
    let found = [];
    try {
      for (let i = 0; i < localStorage.length; i++) {
        const name = localStorage.key(i);
        if (name.startsWith(prefix) && name !== key) found = found.concat(stored(name));
      }
    } catch (error) {
      return [];
    }
    return found.filter((entry) => names.has(entry.hand_in) && !known.has(id(entry)));
  }

  keep();
  const others = elsewhere();
  take.hidden = others.length === 0;
  document.getElementById("points-others").textContent = others.length;
  take.querySelector("button").addEventListener("click", () => {
    add(others);
    keep();
    show();
    take.hidden = true;
  });
  document.getElementById("points-save").addEventListener("click", save);
  for (const input of document.querySelectorAll("[data-input]")) {
    input.disabled = false;
    input.addEventListener("change", () => entered(input));
  }
  addEventListener("storage", () => {
    add(stored(key));
    show();
  });
  addEventListener("beforeunload", (event) => {
    if (!keeps && unsaved()) event.preventDefault();
  });
  show();
})();
