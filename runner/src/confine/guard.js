// Runs in OpenCode's process before OpenCode. It needs no module from outside of its own program; whatever asks
// for one (plugins and custom tools of a workspace or of HOME) gets an empty module, and a line in the log.
Bun.plugin({
  name: "opencode-operator",
  setup(build) {
    build.onLoad({ filter: /^(?!\/\$bunfs\/)/ }, ({ path }) => {
      process.stderr.write(`opencode-operator: not loaded: ${JSON.stringify(path)}\n`);
      return { contents: "", loader: "js" };
    });
  },
});
