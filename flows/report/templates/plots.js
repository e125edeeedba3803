"use strict";
// Makes plots of the figures that carry numbers. A figure that cannot be drawn keeps its static picture.
(() => {
  const COLOURS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"];
  const WINDOWS = [9, 33, 0];
  const NARROW = 600;

  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = value => {
    const size = Math.abs(value);
    for (const [power, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (size >= power) return +(value / power).toPrecision(4) + unit;
    return size && size < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(5));
  };

  // A centred average; at the start it shrinks to the first value, where a curve is steep (flows/charts.py).
  function smoothed(values, window) {
    const reach = Math.floor(window / 2);
    return values.map((value, at) => {
      if (value === null) return null;
      const near = values.slice(at - Math.min(reach, at), at + Math.min(reach, at) + 1).filter(v => v !== null);
      return near.reduce((sum, v) => sum + v, 0) / near.length;
    });
  }

  // The series of a panel on one list of x values, as uPlot takes them; a gap (null) is none where x is another's.
  function table(panel, window) {
    const series = [{}], parts = [];
    for (const line of panel.lines) {
      const colour = COLOURS[line.colour % COLOURS.length];
      const smooth = window && panel.smooth && !line.dots ? Math.min(window, 1 + Math.floor(line.x.length / 10)) : 0;
      const shared = { spanGaps: true, value: (_, value) => value === null || value === undefined ? "–" : short(value) };
      parts.push([line.x, line.y]);
      if (line.dots) {
        series.push({ ...shared, label: line.name, stroke: colour, paths: () => null, points: { show: true, size: 8, fill: colour } });
      } else {
        series.push({ ...shared, label: line.name, stroke: colour, width: smooth ? 1 : 1.6, alpha: smooth ? 0.35 : 1,
                      points: { show: line.x.length < 30, size: 4 } });
        if (smooth) {
          series.push({ ...shared, label: line.name + ", average", stroke: colour, width: 2, points: { show: false } });
          parts.push([line.x, smoothed(line.y, smooth)]);
        }
      }
    }
    return [series, uPlot.join(parts)];
  }

  function draw(figure, numbers, state, place) {
    const sync = uPlot.sync(state.name);
    for (const plot of state.plots) plot.destroy();
    place.replaceChildren();
    const width = place.clientWidth, text = css("--text"), grid = { stroke: css("--line"), width: 1 };
    const axis = { stroke: text, grid, ticks: grid, font: "12px system-ui, sans-serif" };
    const values = (_, ticks) => ticks.map(tick => tick === null ? "" : short(tick));
    state.plots = numbers.panels.map((panel, at) => {
      const [series, data] = table(panel, WINDOWS[state.window]);
      const last = at === numbers.panels.length - 1;
      const positive = panel.lines.every(line => line.y.every(y => y === null || y > 0));
      const options = {
        width, height: panel.height, series, title: panel.label,
        scales: { x: { time: false }, y: state.log && positive ? { distr: 3 } : {} },
        axes: [{ ...axis, values, label: last ? numbers.x : undefined, labelSize: 20, labelFont: axis.font },
               { ...axis, values, size: width < NARROW ? 54 : 62 }],
        cursor: { sync: { key: state.name }, drag: { x: true, y: false } },
        legend: { live: true },
        hooks: { setScale: [(plot, key) => { if (key === "x" && !state.busy) follow(state, plot); }] },
      };
      options.series[0] = { label: numbers.x, value: (_, value) => value === null || value === undefined ? "–" : short(value) };
      const plot = new uPlot(options, data, place);
      sync.sub(plot);
      return plot;
    });
    if (state.range) zoom(state, ...state.range);
  }

  // All panels of a figure show the same stretch.
  function follow(state, plot) {
    const { min, max } = plot.scales.x;
    if (min === null || min === undefined) return;
    state.range = [min, max];
    zoom(state, min, max, plot);
  }

  function zoom(state, min, max, except) {
    state.busy = true;
    for (const plot of state.plots)
      if (plot !== except) plot.batch(() => plot.setScale("x", { min, max }));
    queueMicrotask(() => { state.busy = false; });
  }

  function extent(numbers) {
    const all = numbers.panels.flatMap(panel => panel.lines.flatMap(line => line.x));
    return [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))];
  }

  function button(label, title, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = label;
    made.title = title;
    made.addEventListener("click", () => act(made));
    return made;
  }

  function equip(figure, index) {
    const numbers = JSON.parse(figure.querySelector("script").textContent);
    if (!numbers.panels.length) return;
    const place = document.createElement("div"), tools = document.createElement("div"), picture = figure.querySelector(".static");
    const state = { name: "figure-" + index, plots: [], window: 0, log: false, range: null, busy: false };
    place.className = "plots";
    tools.className = "tools";
    const whole = extent(numbers);
    const scale = factor => {
      const [min, max] = state.range || whole, middle = (min + max) / 2, half = (max - min) / 2 * factor;
      const range = [Math.max(whole[0], middle - half), Math.min(whole[1], middle + half)];
      state.range = range;
      zoom(state, ...range);
    };
    tools.append(
      button("+", "zoom in; or drag across the plot", () => scale(0.5)),
      button("−", "zoom out", () => scale(2)),
      button("whole", "all of it; or click twice", () => { state.range = whole; zoom(state, ...whole); }),
      button("log", "logarithmic y axis", self => {
        state.log = !state.log;
        self.setAttribute("aria-pressed", state.log);
        draw(figure, numbers, state, place);
      }),
    );
    if (numbers.panels.some(panel => panel.smooth))
      tools.append(button("average 9", "values in the average", self => {
        state.window = (state.window + 1) % WINDOWS.length;
        self.textContent = WINDOWS[state.window] ? "average " + WINDOWS[state.window] : "as logged";
        draw(figure, numbers, state, place);
      }));
    picture.before(tools, place);
    picture.hidden = true;
    let width = 0;
    const redraw = () => {
      if (!place.clientWidth) return;  // inside a closed part of the page
      width = place.clientWidth;
      try {
        draw(figure, numbers, state, place);
      } catch (error) {
        picture.hidden = false;
        tools.remove();
        place.remove();
        console.error(error);
      }
    };
    new ResizeObserver(() => { if (place.clientWidth !== width) redraw(); }).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    redraw();
    figure.moxin = state;
  }

  document.querySelectorAll("figure.plot").forEach(equip);
})();
