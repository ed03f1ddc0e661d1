// etcher-sdk's multiWrite, as Etcher calls it, without Etcher.
//
//   ETCHER_MODULES=.../node_modules node etcher_write.js [--no-verify] [--trim] IMAGE NODE...
//
// ETCHER_MODULES names the folder that holds etcher-sdk. With --trim the free blocks of ext
// partitions are left out, which Etcher does where it can read the image at any offset.

'use strict';

const fs = require('fs');
const path = require('path');

const sdk = require(path.join(process.env.ETCHER_MODULES, 'etcher-sdk'));
const { sourceDestination, multiWrite } = sdk;

function destination(node) {
  const sectors = fs.readFileSync(`/sys/block/${path.basename(node)}/size`, 'ascii');
  const drive = {
    raw: node,
    device: node,
    devicePath: null,
    mountpoints: [],
    size: Number(sectors) * 512,
    isSystem: false,
  };
  const options = { drive, write: true, direct: true, unmountOnSuccess: false };
  return new sourceDestination.BlockDevice(options);
}

async function main(words) {
  const flags = words.filter((word) => word.startsWith('--'));
  const [image, ...nodes] = words.filter((word) => !word.startsWith('--'));
  const { failures } = await multiWrite.decompressThenFlash({
    source: new sourceDestination.File({ path: image }),
    destinations: nodes.map(destination),
    onFail: (_, error) => console.error(error.message),
    onProgress: () => undefined,
    verify: !flags.includes('--no-verify'),
    trim: flags.includes('--trim'),
    decompressFirst: flags.includes('--trim'),
  });
  return failures.size === 0 ? 0 : 1;
}

main(process.argv.slice(2)).then(
  (status) => process.exit(status),
  (error) => {
    console.error(error.message);
    process.exit(1);
  },
);
