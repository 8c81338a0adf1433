// Pointing at a segment in the picture shows its label and score, and the segment alone: what gradio's legend does when
// one points at a label. The masks lie over each other as pictures, so the one meant is found by its pixels.
(() => {
  const pixels = new WeakMap(); // by mask: its picture on a canvas
  let lit = null;
  const tip = document.createElement("div");
  tip.setAttribute("role", "status");
  tip.id = "segment-tip";
  tip.style.cssText =
    "position:fixed;display:none;pointer-events:none;z-index:1000;padding:2px 8px;border-radius:4px;" +
    "font:14px system-ui,sans-serif;color:#fff;background:rgba(20,22,28,.9)";

  function covers(mask, x, y) {
    if (!mask.complete || !mask.naturalWidth) return false;
    let held = pixels.get(mask);
    if (!held || held.source !== mask.src) {
      const canvas = document.createElement("canvas");
      canvas.width = mask.naturalWidth;
      canvas.height = mask.naturalHeight;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(mask, 0, 0);
      held = { source: mask.src, context };
      pixels.set(mask, held);
    }
    return held.context.getImageData(x, y, 1, 1).data[3] > 0;
  }

  function pointedAt(event) {
    const base = document.querySelector("#segments img.base-image");
    if (!base || !base.naturalWidth) return null;
    const box = base.getBoundingClientRect();
    const scale = Math.min(box.width / base.naturalWidth, box.height / base.naturalHeight);
    const x = Math.floor((event.clientX - box.left - (box.width - base.naturalWidth * scale) / 2) / scale);
    const y = Math.floor((event.clientY - box.top - (box.height - base.naturalHeight * scale) / 2) / scale);
    if (x < 0 || y < 0 || x >= base.naturalWidth || y >= base.naturalHeight) return null;
    const masks = [...document.querySelectorAll("#segments img.mask")];
    const labels = document.querySelectorAll("#segments .legend-item");
    for (let number = masks.length - 1; number >= 0; number--) // the smallest are last
      if (covers(masks[number], x, y)) return labels[number] ?? null;
    return null;
  }

  document.addEventListener("mousemove", (event) => {
    const label = pointedAt(event);
    if (label !== lit) {
      lit?.dispatchEvent(new MouseEvent("mouseout", { bubbles: true }));
      label?.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
      lit = label;
    }
    tip.style.display = label ? "block" : "none";
    if (!label) return;
    if (!tip.isConnected) document.body.append(tip);
    tip.textContent = label.textContent.trim();
    tip.style.left = `${event.clientX + 14}px`;
    tip.style.top = `${event.clientY + 14}px`;
  });
})();
