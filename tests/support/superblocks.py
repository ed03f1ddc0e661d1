"""Superblocks as the programs that make filesystems write them, on Debian 12.

Each is the few sectors by which blkid knows the filesystem, in zlib and base 85; before each sector
its offset in four little-endian bytes.
"""

import base64
import zlib
from pathlib import Path

SECTORS: dict[str, tuple[int, str]] = {
    # mkntfs -F -f -L LABELNT
    "ntfs": (
        67108864,
        (
            "c-muNU|@J1G{G;#Em#2v7??O1Am9fB3TObr|Nj}mY!;~4e|ZS~4TwQ9J32l&tLA*t2Z`~??<=fXqjaEzJ8TQ"
            "zZgz&V0&%ZD7(F>Fc2@HBzmSZ~Vg(?|%P&z#R7lFtFG)<wNmWS6EY8+b2*^oIEKXI(%qvbULXl3($uB6VR7l"
            "KA;pHkQN-Zu1GAk9bQ!5op@)b&ofHLWcnRyC&dU^`HTnwXtND#V;!GVFn&C|!#fPon<$_RuOKs<vHDZ-JMOi"
            ")??h!emp2{7paWi_n*_phPuE+a0Q4VzOKF@+3(I0J4z6N49+#mK-47Gou74?_Xepd1JVvzLWgg~6A>jUfb{z"
            "9DXB1O*0?LtyG1U;=37!DvBtNXTqJF^3t$KX7vdAQUXS!DvB7NXY&N0{W!^pq)OLX@D7;25z9G0XC@5kkfz%"
            "QW`KIGYz1|H6ud+sd0@4VCJ&}<2sBX9~f1o47m)cU~?Og(o_oEMwSMUKVWG>1T1R;^`{8Kd`2M#Mu;t}LQwr"
            "+F^B?I1t6gSWFxCVmt%nD7Y(@mEDU^5mJfp?gA;=*koE(+p#Vi4D+3QagrV`nh)BB<aCOXZ7HMgSi2(osNU|"
            "I"
        ),
    ),
    # mkfs.exfat -L LABELEX
    "exfat": (
        67108864,
        (
            "c-muNU|@J%Ho-N*%`rqlL4koXzyzT<7#JErv;Yv>F)*+KspWH`Uo$W=FmN(6HZY8WK?Fiq!J=&xjNmlDG8zg"
            "aJ`J#qhQf$X1018FFyhky*Jvn=_%y&X8VVym4e*VI!iY};0;8cY;?sZ-1H=DOFrop27z2a(cO|A#JaRDr0tv"
            "W7"
        ),
    ),
    # mkfs.xfs -L LABELXFS
    "xfs": (
        419430400,
        (
            "c-muNU|@)F3wB~)5MTfU#t97QpnLuVo=_d<?B1yrG8yywxgqKp*r3u4P`VLHH-TjtQb24Lh>!!rmZeM#ObiS"
            "hK8{YVK0pgWqCA|O%=`=tk_<3K5MT>2-~Ryve!zjo2inQl1;Jpz3&dczPPLIejd05-KnDO5dJ^*"
        ),
    ),
    # mkfs.btrfs -L LABELBTR
    "btrfs": (
        134217728,
        (
            "c-muNU}Ok0)>_Pf2iy!4+Ww2z$7PQTbCf{Jg@X)0Js`jcm5+Dw2ucf%_ho}=IB*Ff<q*J#!$=N@JQJ9L>4Pg"
            "40Leiykll!+1_qd+v?DW;AS1d33=OPs17R31$a)+mem~Vwp?~6?%n8TL4A8yq<LKn-;}jCaFq{AY!)zcy"
        ),
    ),
    # mkfs.f2fs -l LABELF2
    "f2fs": (
        134217728,
        (
            "c-muNVPFtY`1*;FfuDhsfq{V;h<Sh*#AbwIFlc~K7C>wd#7sz-5h@NBU;|<<Am#&N0f?E5P^oLL;=aBTciS@"
            "EAyx0gWJfL^21f=b23H0j1~&#HhEXsO006{~4ch"
        ),
    ),
    # pvcreate
    "lvm": (
        67108864,
        (
            "c-muNVqoxbbaM6a_j6@rfPf#zuec}xX`e7(BLxEk!?1EUFGH8Y?5xUC=klPmBBP?TkiruG;y}Ml-yjdeETB>"
            "rh)w|pyZ|Qsfgh_h6T>JN2mk<5@)NB"
        ),
    ),
    # make-bcache -B
    "bcache": (
        67108864,
        (
            "c-mtSU|`VlEzv!nC%2e`0RkAI^s(0BZ+=p)r<zi~)_d&AZQQC@xVL13b5~EMjp^zRkzda7g;8Bw9jvxqcho;"
            "N>3aji00E$TSr|qE*#H3WrW-f"
        ),
    ),
    # genisoimage -V LABELISO
    "iso": (
        1048576,
        (
            "c-muVU|?W$b}=w8WMuI1^b3tpzzuvHom_o9gZ**IGeE(56bd(B1R@Y-;NW23f(UU5Bcw$^gc5@|geT6x0irk"
            "<>bRx(*+m$bVEPqC0fhhn>sL1S"
        ),
    ),
    # mkudffs -l LABELUDF
    "udf": (
        67108864,
        (
            "c-muVU|?Wya&<H?WMmixBNTK1v0reIf$?Y>7_s000|O%iGs7exsU-D*F@XWZhX4*AM<-XGP!~7sIyo7EDw%+"
            "K8KHVO%#sW&Et3;1jLa+&P1DTGeKPY(D{$(kHjrfS4-RouaL&&yC`v6ZPEAn=&C5*APe~=(1WNUz11)d>DCB"
            "0Brlh46D;Vh+qsj}sV&|6TXBV;O)P$)8hL&3}k`fkH>ID$aTz-gwfejdsZ-6SU|6a$K2oz$XLU<5JKePs%U{"
            "7d)JpptC*dsZaiFqa9uwa6!0@4adn%H3BM2GmG2ml=os=^uBs8x0|f%Ecfpzn8DeP9F!0?>{Gs9g#FN9%~;4"
            "gj@YOGf"
        ),
    ),
    # mkfs.erofs
    "erofs": (
        1048576,
        (
            "c-muNVPJUl@auzF|GW8^85kIN7*rUT7$9K99L{VIt$c)&fsp|L76evGq@=sgTWHMv*VpcmDg%Xp6^P$DGB9X"
            "B`Tv0cSsvyN^|}knOjz`*z-cBpTNTKLnWqkPy`G+4B0l?<G%_$SBiYZ0!+u6A`ZF@Q7=|(c0B|KE8~"
        ),
    ),
    # jfs_mkfs -L LABELJFS
    "jfs": (
        67108864,
        (
            "c-muVU|{fa3pQkAU|>l21|oq#fPsOBfti7UiGhI=#8&`fP6Yu5C}06%Nd~YqgE#{c0BN^pU@!qvXY3dlR?Ok"
            "d1_>L12p>l$S0A8F47h<ot3pk3otNQWi~I(8#xwtMX;C;Z$?tAG!ziE<008Qn6)X"
        ),
    ),
    # mkreiserfs -l LABELRE
    "reiserfs": (
        67108864,
        (
            "c-muNU}Ru$U|@J7&%hw8z`!8H00lrc0}BH~dYhM83o`?Q986r`3^Nl@Pf)67v1^f$TQN`wD9r#8V}dFHn#k~"
            "T(y`^v@{V1tQIQ92ta>l_I6Ard1i8XY0jiN>STTn)o5Alb12q97)IFnscmM!3%oMf"
        ),
    ),
}
"""By name: the size of the whole in bytes, and its sectors."""


def make(name: str, path: Path) -> None:
    """Write the sectors into a sparse file at ``path``."""
    size, packed = SECTORS[name]
    content = zlib.decompress(base64.b85decode(packed))
    with path.open("wb") as file:
        file.truncate(size)
        for start in range(0, len(content), 516):
            file.seek(int.from_bytes(content[start : start + 4], "little"))
            file.write(content[start + 4 : start + 516])
