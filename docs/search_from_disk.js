// The theme searches in a worker, which browsers refuse to a page from disk, and takes a stand-in from
// the network there. This one needs no network: the worker's script runs in a frame without a view.
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super();
    this.waiting = [];
    const frame = document.createElement("iframe");
    frame.hidden = true;
    frame.onload = () => {
      const inside = frame.contentWindow;
      inside.postMessage = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
      };
      const script = inside.document.createElement("script");
      script.src = new URL(url, document.baseURI);
      script.onload = () => {
        this.inside = inside;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      };
      inside.document.body.append(script);
    };
    document.body ? document.body.append(frame)
      : addEventListener("DOMContentLoaded", () => document.body.append(frame));
  }
  postMessage(data) {
    if (this.inside) this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }));
    else this.waiting.push(data);
  }
};
