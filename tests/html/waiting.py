"""Until a page is where a test wants it. What a page does after a click or a key, it does when the machine lets it."""

REST = """async limit => {
    const frame = () => new Promise(requestAnimationFrame), pause = ms => new Promise(done => setTimeout(done, ms));
    const busy = () => document.querySelector(".kdtoy-picture")?.getAttribute("aria-busy") !== "false", end = performance.now() + limit;
    do {
        do {
            for (let k = 0; k < 3; k++) await frame(); // what has just been done is drawn in the first, what follows from that in the second
            if (performance.now() > end) throw Error("the toy example does not come to rest");
        } while (busy());
        await pause(250); // the example tells its state 200 ms after its last frame
        await frame();
    } while (busy());
}"""

STILL = """async () => {
    const frame = () => new Promise(requestAnimationFrame);
    await frame();
    await frame();
    const ends = document.getAnimations().filter(of => of.effect.getComputedTiming().endTime < Infinity);
    await Promise.allSettled(ends.map(of => of.finished));
    await frame();
}"""


def rest(page, limit=60_000):
    """Until nothing trains in the toy example and its state has gone into the address, or to Python."""
    page.evaluate(REST, limit)


def still(page):
    """Until the page has drawn what was done last, and nothing on it moves."""
    page.evaluate(STILL)


def until(page, condition, arg=None, timeout=None):
    """Until a JavaScript expression or function of `arg` is true; gives up in silence, so that a test's own assertion says what is wrong."""
    from playwright.sync_api import TimeoutError

    try:
        page.wait_for_function(condition, arg=arg, timeout=timeout)
    except TimeoutError:
        pass
