// Browsers refuse web workers to pages opened from disk. There the search's worker runs in a hidden frame instead, whose
// messages look the same to both sides. (The theme asks for a script from another host for this; a site that opens from
// disk must not.) The worker looks for a class of this name.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      const load = (src) =>
        new Promise((done) => {
          const script = inside.document.createElement("script");
          script.onload = script.onerror = done;
          script.src = src;
          inside.document.body.append(script);
        });
      inside.importScripts = (...urls) => urls.reduce((before, src) => before.then(() => load(src)), Promise.resolve());
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = load(url).then(() => inside);
    }

    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }

    terminate() {}
  };
  window.Worker = window.IFrameWorker;
}
