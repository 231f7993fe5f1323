/** Two pictures on one stage, parted by a line that moves by mouse, touch and keyboard; zoom and pan. */

const LARGEST = 16;
const STEP = 1.5;

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
    this.zoom = null; // CSS pixels per pixel of the result; null fits the stage
    this.centre = { x: 0.5, y: 0.5 }; // of the stage, as shares of the picture
    this.pointers = new Map();
    this.listen(find);
    this.layOut();
  }

  /**
   * Show a result beside its original.
   *
   * @param {string|null} before  address of the original; null where the browser cannot show it
   * @param {string} after  address of the result
   * @param {string} name  for who does not see it
   * @returns {Promise<{width: number, height: number}>} size of the result
   */
  async show(before, after, name) {
    const result = new Image();
    result.src = after;
    await result.decode();
    this.after.src = after;
    this.after.alt = `After: ${name}`;
    this.stage.classList.toggle("alone", !before);
    if (before) this.before.src = before;
    this.before.alt = before ? `Before: ${name}` : "";
    this.split.disabled = !before;
    this.zoom = null;
    this.centre = { x: 0.5, y: 0.5 };
    this.stage.style.aspectRatio = `${Math.min(Math.max(result.naturalWidth / result.naturalHeight, 0.8), 2.4)}`;
    this.layOut(result);
    return { width: result.naturalWidth, height: result.naturalHeight };
  }

  listen(find) {
    this.split.addEventListener("input", () => this.part());
    find("zoom-in").addEventListener("click", () => this.zoomTo(this.scale * STEP));
    find("zoom-out").addEventListener("click", () => this.zoomTo(this.scale / STEP));
    this.one.addEventListener("click", () => this.zoomTo(this.native));
    this.fitting.addEventListener("click", () => this.zoomTo(null));
    this.after.addEventListener("load", () => this.layOut());
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

  layOut(picture = this.after) {
    if (!picture.naturalWidth) return;
    this.width = picture.naturalWidth;
    this.height = picture.naturalHeight;
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
    this.split.setAttribute("aria-valuetext", `${Math.round(this.split.value)} % before`);
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
