/* Search without a server: browsers refuse workers on file:// pages, so the search script runs in a hidden frame. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const scope = (this.scope = frame.contentWindow)
      const load = (url) =>
        new Promise((done, failed) => {
          const script = scope.document.createElement("script")
          script.src = url
          script.onload = done
          script.onerror = () => failed(new Error(`cannot load ${url}`))
          scope.document.body.append(script)
        })
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      scope.importScripts = async (...urls) => {
        for (const url of urls) await load(url)
      }
      this.ready = load(address)
    }

    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.scope.frameElement.remove()
    }
  }
}
