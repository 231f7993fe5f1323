// One whole flow of the page in Firefox, driven over WebDriver BiDi: node firefox.mjs ADDRESS PICTURE SCREENSHOT FIREFOX
import puppeteer from "puppeteer-core";

const [address, picture, screenshot, executablePath] = process.argv.slice(2);
const browser = await puppeteer.launch({ browser: "firefox", executablePath, headless: true });
try {
  const page = await browser.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.setViewport({ width: 1280, height: 860 });
  await page.goto(address);
  await page.waitForSelector("#variant-list[aria-busy=false] input");
  await page.click("#more summary");
  await page.select("#format", "webp");
  const choose = await page.$("#choose");
  await choose.uploadFile(picture);
  await page.waitForSelector(".item [data-act=download]:not([hidden])");
  await page.focus("#split");
  await page.keyboard.press("ArrowLeft");
  await page.waitForFunction(() => document.querySelector("#result-tools:not([hidden])"));
  const seen = await page.evaluate(() => {
    const link = document.querySelector(".item [data-act=download]");
    const result = document.querySelector("#after img");
    return {
      name: link.download,
      size: [result.naturalWidth, result.naturalHeight],
      split: document.querySelector("#split").value,
      facts: document.querySelector("#shown-facts").innerText,
      stored: JSON.parse(localStorage.getItem("swin2sr-choices")).format,
      asksBeforeLeaving: !window.dispatchEvent(new Event("beforeunload", { cancelable: true })),
    };
  });
  await page.screenshot({ path: screenshot });
  console.log(JSON.stringify({ ...seen, complaints }));
} finally {
  await browser.close();
}
