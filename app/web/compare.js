/** Two pictures on one stage, divided by a line that moves by mouse, touch and keyboard; zoom and pan. */

import { text } from "./text.js";

const LARGEST = 16;
const STEP = 1.5;
/** Longest side of the reduced picture in which the most detailed part is looked for. */
const DETAIL_SIDE = 400;

export class Compare {
  /** @param {(id: string) => HTMLElement} find */
  constructor(find) {
    this.stage = find("stage");
    this.split = find("split");
    this.divider = find("divider");
    this.value = find("zoom-value");
    this.one = find("zoom-one");
    this.fitting = find("zoom-fit");
    this.before = find("before").firstElementChild;
    this.after = find("after").firstElementChild;
    this.tags = { before: find("tag-before"), after: find("tag-after") };
    this.zoom = null; // CSS pixels per pixel of the result; null fits the stage
    this.centre = { x: 0.5, y: 0.5 }; // of the stage, as shares of the picture
    this.pointers = new Map();
    this.listen(find);
    this.after.decode().then(() => {
      if (this.width) return; // a picture was given already
      this.frame(this.after);
      this.layOut();
    });
  }

  /**
   * Show a result beside another picture.
   *
   * @param {{address: string, name: string}|null} left  null if the browser cannot show the original
   * @param {{address: string, name: string}} right  the result
   * @param {string} name  of the picture, for screen readers
   * @returns {Promise<{width: number, height: number}>} size of the result
   */
  async show(left, right, name) {
    const result = await decoded(right.address);
    const other = left && (await decoded(left.address));
    this.after.src = right.address;
    this.after.alt = `${right.name}: ${name}`;
    this.tags.after.textContent = right.name;
    this.stage.classList.toggle("alone", !left);
    this.before.hidden = !left;
    if (left) {
      this.before.src = left.address;
      this.tags.before.textContent = left.name;
    }
    this.before.alt = left ? `${left.name}: ${name}` : "";
    this.split.disabled = !left;
    this.frame(result);
    this.zoom = this.fit < this.native ? this.native : null;
    this.centre = this.zoom === null ? { x: 0.5, y: 0.5 } : this.mostDetailed(other ?? result);
    this.layOut();
    return { width: result.naturalWidth, height: result.naturalHeight };
  }

  /**
   * Show a picture alone, while it is being worked on.
   *
   * @param {string|null} address  null if the browser cannot show it: then the stage is empty
   * @param {string} name  for screen readers
   */
  async preview(address, name) {
    const picture = address && (await decoded(address));
    this.stage.classList.add("alone");
    this.split.disabled = true;
    this.before.hidden = true;
    this.after.hidden = !picture;
    this.after.alt = picture ? name : "";
    if (!picture) return;
    this.after.src = address;
    this.zoom = null;
    this.centre = { x: 0.5, y: 0.5 };
    this.frame(picture);
    this.layOut();
  }

  /** Give the stage the shape of a picture, within limits. */
  frame(picture) {
    this.after.hidden = false;
    this.width = picture.naturalWidth;
    this.height = picture.naturalHeight;
    this.stage.style.aspectRatio = `${Math.min(Math.max(this.width / this.height, 0.8), 2.4)}`;
  }

  /**
   * The centre of the stage-sized part of a picture that has the strongest edges: there the two halves differ most.
   *
   * @returns {{x: number, y: number}} shares of the picture
   */
  mostDetailed(picture) {
    const reduce = Math.min(1, DETAIL_SIDE / Math.max(picture.naturalWidth, picture.naturalHeight));
    const [wide, tall] = [picture.naturalWidth, picture.naturalHeight].map((side) => Math.max(2, Math.round(side * reduce)));
    const canvas = Object.assign(document.createElement("canvas"), { width: wide, height: tall });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0, wide, tall);
    const { data } = context.getImageData(0, 0, wide, tall);
    const light = Float32Array.from({ length: wide * tall }, (_none, index) => data[4 * index] + 2 * data[4 * index + 1] + data[4 * index + 2]);
    // sums[y][x]: the edges above and left of (x, y), so that the sum over a rectangle takes four look-ups.
    const sums = new Float64Array((wide + 1) * (tall + 1));
    for (let y = 0; y < tall; y += 1) {
      let row = 0;
      for (let x = 0; x < wide; x += 1) {
        const here = light[y * wide + x];
        if (x) row += Math.abs(here - light[y * wide + x - 1]);
        if (y) row += Math.abs(here - light[(y - 1) * wide + x]);
        sums[(y + 1) * (wide + 1) + x + 1] = sums[y * (wide + 1) + x + 1] + row;
      }
    }
    const view = [this.stage.clientWidth / (this.width * this.zoom), this.stage.clientHeight / (this.height * this.zoom)];
    const [across, down] = [Math.round(Math.min(1, view[0]) * wide), Math.round(Math.min(1, view[1]) * tall)];
    let best = { edges: -1 };
    for (let y = 0; y + down <= tall; y += 2) {
      for (let x = 0; x + across <= wide; x += 2) {
        const at = (row, column) => sums[row * (wide + 1) + column];
        const edges = at(y + down, x + across) - at(y, x + across) - at(y + down, x) + at(y, x);
        if (edges > best.edges) best = { edges, x: (x + across / 2) / wide, y: (y + down / 2) / tall };
      }
    }
    return { x: best.x, y: best.y };
  }

  /** The result as PNG, whatever its format. */
  asPng() {
    const canvas = Object.assign(document.createElement("canvas"), { width: this.after.naturalWidth, height: this.after.naturalHeight });
    canvas.getContext("2d").drawImage(this.after, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  listen(find) {
    this.split.addEventListener("input", () => this.part());
    find("zoom-in").addEventListener("click", () => this.zoomTo(this.scale * STEP));
    find("zoom-out").addEventListener("click", () => this.zoomTo(this.scale / STEP));
    this.one.addEventListener("click", () => this.zoomTo(this.native));
    this.fitting.addEventListener("click", () => this.zoomTo(null));
    new ResizeObserver(() => this.layOut()).observe(this.stage);
    this.stage.addEventListener("keydown", (event) => this.press(event));
    this.stage.addEventListener("dblclick", (event) => this.zoomTo(this.zoom === null ? this.native : null, event));
    this.stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.stage.addEventListener("pointerdown", (event) => this.hold(event));
    this.stage.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) this.stage.addEventListener(end, (event) => this.release(event));
  }

  /** The zoom at which a pixel of the result is a pixel of the screen. */
  get native() {
    return 1 / window.devicePixelRatio;
  }

  get fit() {
    return Math.min(this.stage.clientWidth / this.width, this.stage.clientHeight / this.height);
  }

  get scale() {
    return this.zoom ?? this.fit;
  }

  /** Whether a part of the picture lies outside the stage. */
  get zoomed() {
    return this.scale > this.fit * 1.001;
  }

  layOut() {
    if (!this.width) return;
    const size = { x: this.width * this.scale, y: this.height * this.scale };
    const room = { x: this.stage.clientWidth, y: this.stage.clientHeight };
    const place = {};
    for (const axis of ["x", "y"]) {
      const half = room[axis] / 2 / size[axis];
      this.centre[axis] = half >= 0.5 ? 0.5 : Math.min(Math.max(this.centre[axis], half), 1 - half);
      place[axis] = room[axis] / 2 - this.centre[axis] * size[axis];
    }
    for (const image of [this.before, this.after]) {
      image.style.width = `${size.x}px`;
      image.style.height = `${size.y}px`;
      image.style.transform = `translate(${place.x}px, ${place.y}px)`;
      image.style.imageRendering = this.scale >= this.native * 4 ? "pixelated" : "auto";
    }
    this.stage.classList.toggle("zoomed", this.zoomed);
    this.value.textContent = `${Math.round((this.scale / this.native) * 100)} %`;
    this.one.setAttribute("aria-pressed", String(this.zoom !== null && Math.abs(this.scale / this.native - 1) < 0.001));
    this.fitting.setAttribute("aria-pressed", String(this.zoom === null));
    this.part();
  }

  part() {
    this.stage.style.setProperty("--split", `${this.split.value}%`);
    this.split.setAttribute("aria-valuetext", text("stage.split", { percent: Math.round(this.split.value) }));
  }

  /** Zoom, keeping what lies under a point in its place. */
  zoomTo(zoom, point) {
    const box = this.stage.getBoundingClientRect();
    const from = { x: (point?.clientX ?? box.x + box.width / 2) - box.x - box.width / 2, y: (point?.clientY ?? box.y + box.height / 2) - box.y - box.height / 2 };
    const old = this.scale;
    this.zoom = zoom === null || zoom <= this.fit ? (zoom === this.native ? zoom : null) : Math.min(zoom, LARGEST * this.native);
    this.centre.x += (from.x / this.width) * (1 / old - 1 / this.scale);
    this.centre.y += (from.y / this.height) * (1 / old - 1 / this.scale);
    this.layOut();
  }

  panBy(x, y) {
    this.centre.x -= x / (this.width * this.scale);
    this.centre.y -= y / (this.height * this.scale);
    this.layOut();
  }

  press(event) {
    if (event.target !== this.stage || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (event.key === "+" || event.key === "=") this.zoomTo(this.scale * STEP);
    else if (event.key === "-") this.zoomTo(this.scale / STEP);
    else if (event.key === "1") this.zoomTo(this.native);
    else if (event.key === "0") this.zoomTo(null);
    else if (steps[event.key] && this.zoomed) this.panBy(...steps[event.key]);
    else return;
    event.preventDefault();
  }

  wheel(event) {
    if (!event.ctrlKey && !this.zoomed) return; // the page scrolls
    event.preventDefault();
    if (event.ctrlKey) this.zoomTo(this.scale * Math.exp(-event.deltaY / 200), event);
    else this.panBy(-event.deltaX, -event.deltaY);
  }

  hold(event) {
    if (event.button) return;
    this.stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size > 1) { // two fingers zoom: what the first one did to the line is taken back
      this.parting = false;
      this.split.value = this.restingSplit;
      this.part();
      return;
    }
    this.restingSplit = this.split.value;
    this.parting = !this.stage.classList.contains("alone") && (this.divider.contains(event.target) || !this.zoomed);
    this.stage.classList.add("dragging");
    if (this.parting) this.drag(event);
  }

  drag(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    if (this.pointers.size === 2) {
      this.pinch(event, last);
    } else if (this.parting) {
      const box = this.stage.getBoundingClientRect();
      this.split.value = ((event.clientX - box.x) / box.width) * 100;
      this.part();
    } else {
      this.panBy(event.clientX - last.clientX, event.clientY - last.clientY);
    }
    this.pointers.set(event.pointerId, event);
  }

  pinch(event, last) {
    const other = [...this.pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    const far = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
    const middle = { clientX: (last.clientX + other.clientX) / 2, clientY: (last.clientY + other.clientY) / 2 };
    this.zoomTo((this.scale * far(event)) / Math.max(far(last), 1), middle);
    this.panBy((event.clientX - last.clientX) / 2, (event.clientY - last.clientY) / 2);
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    this.stage.classList.toggle("dragging", this.pointers.size > 0);
  }
}

async function decoded(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}
