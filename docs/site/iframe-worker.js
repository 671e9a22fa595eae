// Browsers refuse workers whose script is a file, so that the search would need a server. Opened from files,
// the site runs the search's worker in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.frame = frame.contentWindow
      addEventListener("message", event => {
        if (event.source !== this.frame) return
        const message = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(message)
        if (this.onmessage) this.onmessage(message)
      })
      const script = rest => `<script${rest}</scr` + "ipt>"
      this.frame.document.open()
      this.frame.document.write(
        script(`>
          postMessage = message => parent.postMessage(message, "*")
          importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done, fail) => {
            const part = document.createElement("script")
            part.src = url
            part.onload = done
            part.onerror = fail
            document.body.appendChild(part)
          })), Promise.resolve())
        `) + script(` src="${url}">`)
      )
      this.frame.document.close()
    }
    postMessage(data) { this.frame.dispatchEvent(new MessageEvent("message", { data })) }
    terminate() {}
  }
}
